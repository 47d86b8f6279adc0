/**
 * The rowcast client: one module without dependencies, for browsers and Node.
 *
 * Read it from the bottom up: `createClient` makes a `Realtime`, which owns everything that outlives a
 * connection (channels, the session's cursor, unanswered publishes). A `Connection` is one WebSocket from
 * the handshake to its end and does not know channels. `Seen` holds the message ids of a channel that a
 * resume may repeat.
 *
 * How a resume neither loses nor repeats a message: a cursor of the server stands for everything of this
 * session up to a position. The newest cursor wins, and the ids of messages since then are kept, so that
 * those which a replay repeats are dropped. While channels are being resumed a new cursor must not replace
 * the old one: it would cover channels whose replay has not arrived yet, and after a second disconnect they
 * would miss it.
 */

const HANDSHAKE_MS = 10_000;
const PING_ANSWER_MS = 10_000;
const CLOSE_MS = 1_000;
const STABLE_MS = 5_000;
const SHORTEST_HEARTBEAT_MS = 50;
const SHORTEST_TICK_MS = 20;
const REF_BYTES = 40; // bytes that a request's ref adds to its frame
const LONGEST_PAUSE_S = 3_600;
// Servers limit the unanswered requests of a session; each channel of a subscribe counts.
const WINDOW = 64;
const NAMES_PER_FRAME = 50;
const FIRST_JOIN_RETRIES = 5;
const TRACK_PAUSE_MS = 1_000;
const DEFAULTS = { timeout: 30_000, connectTimeout: 20_000, minDelay: 500, maxDelay: 30_000, maxPending: 5_000 };

/** Kinds of `channel.on()` that no message reaches by its event name, whatever name its sender chose. */
const RESERVED = new Set(['message', 'presence', '*', 'error', 'closed', 'deleted', 'resync', 'subscribed']);
/** Codes of temporary refusals: the same request may succeed later. */
const RETRYABLE = new Set(['unavailable', 'rate_limited', 'internal', 'token_expired']);
/** Codes of a closed channel after which the client subscribes again by itself. */
const TEMPORARY = new Set(['lagging', 'expired', 'unavailable']);
const TOKEN_CODES = new Set(['invalid_token', 'token_expired']);

const now = () => performance.now();
const pause = (seconds, otherwise) => (seconds > 0 ? Math.min(seconds, LONGEST_PAUSE_S) * 1000 : otherwise);
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** An error: `code` is for programs, `message` for people; `channel` is set if it concerns one. */
export class RealtimeError extends Error {
  constructor(code, message, details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'RealtimeError';
    this.code = code;
    for (const key of ['channel', 'retryAfter', 'id']) if (details[key] !== undefined) this[key] = details[key];
  }

  /** The message of an Error is not enumerable; without this method a logged error would be `{}`. */
  toJSON() {
    return { code: this.code, message: this.message, channel: this.channel, retryAfter: this.retryAfter, id: this.id };
  }
}

const failure = (error) => ({ data: null, error });
const asError = (cause) => (cause instanceof RealtimeError ? cause
  : new RealtimeError('failed', `The client could not connect: ${cause?.message ?? cause}`, { cause }));

const refusal = (frame, channel, id) => new RealtimeError(
  typeof frame.code === 'string' ? frame.code : 'internal',
  typeof frame.message === 'string' ? frame.message : 'The server refused the request without a reason.',
  { channel: typeof frame.channel === 'string' ? frame.channel : channel, retryAfter: frame.retryAfter, id },
);

/** `randomUUID` exists on secure origins only; pages on plain http addresses need keys as well. */
function uuid() {
  if (globalThis.crypto.randomUUID) return globalThis.crypto.randomUUID();
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/** UTF-8 takes at most three bytes per UTF-16 unit, so a short text need not be encoded to be measured. */
function longerThan(text, bytes) {
  return text.length > bytes || (text.length * 3 > bytes && new TextEncoder().encode(text).length > bytes);
}

async function findWebSocket(given) {
  if (given) return given;
  if (globalThis.WebSocket) return globalThis.WebSocket;
  if (globalThis.process?.versions?.node) {
    // A literal name would make bundlers include `ws` in pages.
    const name = 'ws';
    try {
      return (await import(/* @vite-ignore */ /* webpackIgnore: true */ name)).WebSocket;
    } catch (cause) {
      if (cause?.code !== 'ERR_MODULE_NOT_FOUND') throw cause;
    }
  }
  throw new RealtimeError('no_websocket',
    'This runtime has no WebSocket: install "ws" and pass createClient({ WebSocket }) its WebSocket class.');
}

function socketUrl(baseUrl, anonKey) {
  const url = new URL(baseUrl);
  url.protocol = { 'http:': 'ws:', 'https:': 'wss:' }[url.protocol] ?? url.protocol;
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/realtime`;
  url.search = '';
  url.hash = '';
  if (anonKey) url.searchParams.set('apikey', anonKey);
  return url.href;
}

/** Callbacks by kind. A callback that throws is reported and does not stop the others. */
class Listeners {
  #kinds = new Map();
  #failed;

  constructor(failed) {
    this.#failed = failed;
  }

  get size() {
    return this.#kinds.size;
  }

  add(entry) {
    const entries = this.#kinds.get(entry.kind) ?? new Set();
    this.#kinds.set(entry.kind, entries.add(entry));
  }

  remove(entry) {
    const entries = this.#kinds.get(entry.kind);
    if (entries?.delete(entry) && entries.size === 0) this.#kinds.delete(entry.kind);
  }

  removeCallback(kind, callback) {
    for (const entry of [...(this.#kinds.get(kind) ?? [])]) {
      if (callback === undefined || entry.callback === callback) this.remove(entry);
    }
  }

  /** Returns whether there was a callback. */
  emit(kind, ...args) {
    const entries = this.#kinds.get(kind);
    if (!entries) return false;
    for (const entry of [...entries]) {
      if (!entries.has(entry)) continue; // removed by a callback just before
      try {
        const result = entry.callback(...args);
        if (typeof result?.then === 'function') result.then(undefined, (cause) => this.#failed(cause, kind));
      } catch (cause) {
        this.#failed(cause, kind);
      }
    }
    return true;
  }
}

function listener(kind, callback) {
  if (typeof kind !== 'string' || typeof callback !== 'function') {
    throw new TypeError('on(kind, callback) takes the name of an event and a function.');
  }
  return { kind, callback };
}

/** The ids of one channel that a replay may repeat, in the order of arrival. */
class Seen {
  #ids = new Map();
  #durable = 0;

  /** Keeps an id; returns false if it is known already. */
  add(id, at, durable) {
    if (this.#ids.has(id)) return false;
    this.#ids.set(id, { at, durable });
    this.#durable += durable;
    return true;
  }

  /** Drops ids that arrived before `at`, except the newest `keep` durable ones, which a history may repeat. */
  forget(at, keep) {
    for (const [id, entry] of this.#ids) {
      if (entry.at >= at) return;
      if (entry.durable && this.#durable <= keep) continue;
      this.#ids.delete(id);
      this.#durable -= entry.durable;
    }
  }

  clear() {
    this.#ids.clear();
    this.#durable = 0;
  }
}

/** One WebSocket from the handshake to its end: requests, answers and liveness. */
class Connection {
  ready = false;
  limits = {};
  heartbeat = 25_000;
  overlap = 10_000;
  #socket;
  #on;
  #ref = 0;
  #requests = new Map(); // sent, by ref
  #queue = [];
  #unanswered = 0;
  #openedAt = now();
  #heardAt = now();
  #pingedAt = null;
  #refusal = null;
  #trouble = '';
  #token;

  /** `on` is `{ ready, frame, report, closed }`; `closed` is called exactly once. */
  constructor(socket, token, on) {
    this.#socket = socket;
    this.#token = token;
    this.#on = on;
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onerror = (event) => { this.#trouble = event?.message ?? ''; };
    socket.onclose = (event) => this.#end(event.code, event.reason);
  }

  /**
   * Sends a request, an object or its JSON text, as soon as the window has room for its answers.
   * `answer(frame)` gets each of the `expected` answers, and null when the connection ends before.
   * Returns the request for `expectOneLess`.
   */
  request(frame, answer, expected = 1) {
    const text = typeof frame === 'string' ? frame : JSON.stringify(frame);
    const request = { ref: String(++this.#ref), text, answer, expected };
    this.#queue.push(request);
    this.#flush();
    return request;
  }

  /** Counts an answer that has arrived, or will not: the server may not answer a subscribe that was ended. */
  expectOneLess(request) {
    request.expected -= 1;
    this.#unanswered -= 1;
    if (request.expected === 0) this.#requests.delete(request.ref);
    this.#flush();
  }

  #flush() {
    while (this.#queue.length > 0
      && (this.#unanswered === 0 || this.#unanswered + this.#queue[0].expected <= WINDOW)) {
      const request = this.#queue.shift();
      this.#unanswered += request.expected;
      this.#write(request);
    }
  }

  #write(request) {
    this.#requests.set(request.ref, request);
    this.#socket.send(`${request.text.slice(0, -1)},"ref":"${request.ref}"}`);
  }

  /** Called on every tick: pings a server that has been silent for too long, and leaves it if it stays silent. */
  check() {
    const at = now();
    if (!this.ready) {
      if (at - this.#openedAt > HANDSHAKE_MS) this.drop('The server did not finish the handshake in time.');
    } else if (this.#pingedAt !== null) {
      if (at - this.#pingedAt > Math.min(PING_ANSWER_MS, this.heartbeat)) this.drop('The server stopped answering.');
    } else if (at - this.#heardAt > 2 * this.heartbeat) {
      this.#pingedAt = at;
      // The ping ignores the window, which is full when the server is stuck.
      this.#unanswered += 1;
      this.#write({ ref: String(++this.#ref), text: '{"op":"ping"}', answer: () => {}, expected: 1 });
    }
  }

  /** Leaves the connection at once, without waiting for the server's close frame. */
  drop(reason, code = 1006) {
    const socket = this.#socket;
    this.#end(code, reason);
    socket.close();
    // A dead server never answers a close; `ws` would keep the process alive until then.
    const terminate = () => socket.terminate?.();
    if (code !== 1000) terminate();
    else setTimeout(terminate, CLOSE_MS).unref?.();
  }

  #end(code, reason) {
    if (!this.#on) return;
    const { closed } = this.#on;
    this.#on = null;
    this.ready = false;
    const requests = [...this.#requests.values(), ...this.#queue];
    this.#requests.clear();
    this.#queue = [];
    const socket = this.#socket;
    socket.onmessage = socket.onclose = null;
    socket.onerror = () => {}; // `ws` throws if an error that follows a close has no listener
    for (const { answer } of requests) answer(null);
    closed({ code, reason: reason || this.#trouble, refusal: this.#refusal });
  }

  #receive(data) {
    this.#heardAt = now();
    this.#pingedAt = null;
    const { report } = this.#on;
    this.#refusal = null;
    try {
      const frame = JSON.parse(data);
      if (!isObject(frame) || typeof frame.op !== 'string') throw new TypeError('it is not an object with an op.');
      this.#dispatch(frame);
    } catch (cause) {
      const text = `The server sent a frame that this client cannot use: ${cause.message}`;
      report(new RealtimeError('invalid_frame', text, { cause }));
    }
  }

  #dispatch(frame) {
    if (frame.op === 'welcome') {
      this.#welcome(frame);
    } else if (frame.op !== 'ok' && frame.op !== 'error') {
      if (this.ready) this.#on.frame(frame);
    } else if (this.#requests.has(frame.ref)) {
      const request = this.#requests.get(frame.ref);
      // An error without a channel refuses a whole subscribe frame.
      const answered = frame.op === 'error' && typeof frame.channel !== 'string' ? request.expected : 1;
      for (let count = 0; count < answered; count += 1) this.expectOneLess(request);
      request.answer(frame);
    } else if (frame.op === 'error' && (frame.ref === null || frame.ref === undefined)) {
      // As the last frame it is the reason of the close.
      this.#refusal = refusal(frame);
      if (this.ready) this.#on.report(this.#refusal);
    }
  }

  #welcome(frame) {
    if (isObject(frame.limits)) this.limits = frame.limits;
    if (frame.heartbeat > 0) this.heartbeat = Math.max(frame.heartbeat * 1000, SHORTEST_HEARTBEAT_MS);
    const overlap = frame.replayOverlap ?? this.limits.replayOverlap;
    if (overlap >= 0) this.overlap = overlap * 1000;
    // Nothing else is sent before the answer: the server would still treat the client as anonymous. Without
    // a token the request is a ping: the server sends its welcome before it checks the key, so only an answer
    // shows that the key was accepted.
    this.request(this.#token ? { op: 'auth', token: this.#token } : { op: 'ping' }, (answer) => {
      if (answer?.op === 'ok') this.#begin(frame, answer);
      else if (answer) {
        this.#refusal = refusal(answer);
        const temporary = RETRYABLE.has(this.#refusal.code) && !TOKEN_CODES.has(this.#refusal.code);
        this.drop(this.#refusal.message, temporary ? 1013 : 3500);
      }
    });
  }

  #begin({ session }, { user, role }) {
    this.ready = true;
    this.#refusal = null;
    this.#on.ready({ session, user: user ?? null, role });
  }
}

/** The result of `.subscribe()`. Those of one channel share one subscription on the wire. */
class Subscription {
  #state;
  #settle;

  constructor(state, channel, end) {
    this.#state = state;
    this.channel = channel;
    this.ready = new Promise((resolve, reject) => { this.#settle = { resolve, reject }; });
    // It need not be awaited: a refusal is an `error` event as well.
    this.ready.catch(() => {});
    this.unsubscribe = () => end(this);
  }

  get state() {
    if (!this.#state.subscriptions.has(this)) return 'closed';
    return this.#state.phase === 'joined' ? 'subscribed' : 'subscribing';
  }

  confirm() {
    this.#settle.resolve();
  }

  fail(error) {
    this.#settle.reject(error);
  }
}

/** The state of one channel name; every `Channel` object of that name shares it. */
class ChannelState {
  options = { echo: true, history: 0 };
  subscriptions = new Set();
  phase = 'idle'; // idle: not wanted; waiting: wanted, request follows later; joining: request sent; joined
  live = false; //   confirmed at least once since it is wanted
  after = undefined; // cursor of its next subscribe; `seen` is kept while it is set
  attempt = 0; //    number of the latest subscribe; older answers are ignored
  asked = null; //   the frame that subscribes to it: its request, and the channels without an answer
  retries = 0;
  timer = undefined;
  progressAt = 0;
  seen = new Seen();
  members = new Map();
  tracking = null;

  constructor(name, realtime, failed) {
    this.name = name;
    this.realtime = realtime;
    this.listeners = new Listeners(failed);
    this.root = new Channel(this, []);
  }

  get inUse() {
    return this.subscriptions.size > 0 || this.listeners.size > 0;
  }

  deliver(message, meta) {
    const { payload, event, type } = message;
    if (typeof event === 'string' && !RESERVED.has(event)) this.listeners.emit(event, payload, message, meta);
    if (type === 'message' || event === 'message') this.listeners.emit('message', payload, message, meta);
    this.listeners.emit('*', payload, message, meta);
  }

  /** Applies presence events; of a whole list (`full`) those events that lead to it from the known members. */
  present(events, full) {
    const entries = events.filter((event) => isObject(event) && typeof event.key === 'string');
    const { attempt } = this;
    for (const change of full ? this.#changes(entries) : entries) {
      if (this.attempt !== attempt) return; // a callback has unsubscribed
      this.#member(change);
    }
  }

  #changes(entries) {
    const next = new Map();
    for (const entry of entries) if (entry.type !== 'leave') next.set(entry.key, entry.presence ?? entry.state);
    const changes = [...this.members.keys()].filter((key) => !next.has(key)).map((key) => ({ type: 'leave', key }));
    for (const [key, presence] of next) {
      const known = this.members.has(key);
      if (known && JSON.stringify(this.members.get(key)) === JSON.stringify(presence)) continue;
      changes.push({ type: known ? 'update' : 'join', key, presence });
    }
    return changes;
  }

  #member({ type, key, presence }) {
    const last = this.members.get(key);
    if (type === 'leave') this.members.delete(key);
    else this.members.set(key, presence);
    this.listeners.emit('presence', { type, key, presence: presence ?? last });
  }
}

/** A channel by its name. `.on()` returns a channel that owns its callbacks: they end with its subscription. */
class Channel {
  #state;
  #owned;

  constructor(state, owned) {
    this.#state = state;
    this.#owned = owned;
  }

  get name() {
    return this.#state.name;
  }

  on(kind, callback) {
    const entry = listener(kind, callback);
    this.#state.listeners.add(entry);
    this.#state.realtime.settle(this.#state);
    return new Channel(this.#state, [...this.#owned, entry]);
  }

  off(kind, callback) {
    this.#state.listeners.removeCallback(kind, callback);
    this.#state.realtime.settle(this.#state);
    return this;
  }

  subscribe() {
    const { listeners, realtime } = this.#state;
    for (const entry of this.#owned) listeners.add(entry);
    return realtime.subscribe(this.#state, (subscription) => {
      const others = [...this.#state.subscriptions].filter((other) => other !== subscription);
      for (const entry of this.#owned) {
        if (!others.some(({ channel }) => channel.#owned.includes(entry))) listeners.remove(entry);
      }
      realtime.unsubscribe(this.#state, subscription);
      realtime.settle(this.#state);
    }, this);
  }

  /** Ends every subscription to this channel, and the presence in it. */
  unsubscribe() {
    this.untrack();
    for (const subscription of [...this.#state.subscriptions]) subscription.unsubscribe();
  }

  send(message) {
    return this.#state.realtime.send(this.#state, message);
  }

  track(state) {
    return this.#state.realtime.track(this.#state, state);
  }

  untrack() {
    return this.#state.realtime.untrack(this.#state);
  }

  presenceState() {
    return [...this.#state.members.values()];
  }
}

/** The client itself: it connects and reconnects, and owns channels, the session's cursor and publishes. */
class Realtime {
  #options;
  #url;
  #token;
  #listeners = new Listeners((cause, kind) => this.#callbackFailed(cause, kind));
  #state = 'closed'; // closed | connecting | open | waiting
  #connection = null;
  #attempt = 0;
  #failures = 0;
  #everOpen = false;
  #openAt = 0;
  #lastError = null;
  #refreshing = null;
  #waits = new Set();
  #retryTimer;
  #pause;
  #ticker;
  #ticking = 0;
  #connecting = [];
  #channels = new Map();
  #idle = new Map();
  #collected = new FinalizationRegistry((name) => {
    if (!this.#idle.get(name)?.deref()) this.#idle.delete(name);
  });
  #outbox = new Set();
  #cursor;
  #offered = null;
  #resuming = new Set();
  #resumedOnce = new Set(); // channels that have used `after`
  #online = () => { if (this.#state === 'waiting') this.#open(); };

  constructor(options) {
    this.#options = options;
    this.#url = socketUrl(options.baseUrl, options.anonKey);
    this.#token = options.accessToken;
    this.#cursor = options.after;
  }

  // ---- for applications -------------------------------------------------------------------------

  get state() {
    return this.#state;
  }

  /** The position up to which callbacks got everything; `createClient({ after })` resumes from it. */
  get cursor() {
    return this.#cursor;
  }

  on(kind, callback) {
    this.#listeners.add(listener(kind, callback));
    return this;
  }

  off(kind, callback) {
    this.#listeners.removeCallback(kind, callback);
    return this;
  }

  connect({ accessToken } = {}) {
    const changed = accessToken !== undefined && accessToken !== this.#token;
    if (changed) this.#token = accessToken;
    if (this.#state === 'open') return changed ? this.#changeToken() : Promise.resolve();
    return this.#connect(changed);
  }

  #connect(anew) {
    return new Promise((resolve, reject) => {
      const waiter = { resolve, reject };
      this.#connecting.push(waiter);
      if (this.#state !== 'connecting' || anew) this.#open();
      this.#within(this.#options.connectTimeout, () => this.#unconnected(waiter));
    });
  }

  #unconnected(waiter) {
    const at = this.#connecting.indexOf(waiter);
    if (at < 0) return;
    this.#connecting.splice(at, 1);
    const error = this.#lastError ?? new RealtimeError('unreachable', `${this.#options.baseUrl} did not answer in time.`);
    waiter.reject(error);
    // Attempts continue only while a subscription, a publish or another connect() waits for a connection.
    const wanted = this.#outbox.size > 0 || [...this.#channels.values()].some((state) => state.phase !== 'idle');
    if (!wanted && this.#connecting.length === 0) this.#stop(error, { quiet: true });
  }

  /** Disconnects. Subscriptions stay wanted: a later connect() resumes them. */
  disconnect() {
    if (this.#state === 'closed') return;
    this.#stop(new RealtimeError('disconnected', 'The client was disconnected.'), { quiet: true });
  }

  /** Presents another token on the open connection. */
  async setAuth(accessToken) {
    this.#token = accessToken;
    if (this.#state === 'open') await this.#changeToken();
    else if (this.#state === 'connecting') this.#open();
  }

  /** An anonymous session may get a user; for another user the server wants a new connection. */
  async #changeToken() {
    try {
      await this.#refresh();
    } catch (error) {
      if (!TOKEN_CODES.has(error.code)) throw error;
      const connected = this.#connect(true);
      this.#listeners.emit('disconnect', { code: 1000, reason: 'The server wants a new connection for this token.' });
      await connected;
    }
  }

  channel(name, options = {}) {
    if (typeof name !== 'string' || name === '') throw new TypeError('channel(name) takes the name of a channel.');
    let state = this.#channels.get(name) ?? this.#idle.get(name)?.deref();
    if (!state) {
      state = new ChannelState(name, this, (cause, kind) => this.#callbackFailed(cause, kind, name));
      this.#collected.register(state, name);
      this.settle(state);
    }
    for (const key of Object.keys(state.options)) {
      if (options[key] === undefined || options[key] === state.options[key]) continue;
      if (state.phase !== 'idle') {
        throw new TypeError(`Channel ${name} is subscribed with another ${key}: unsubscribe before changing it.`);
      }
      state.options[key] = options[key];
    }
    return state.root;
  }

  // ---- channels ---------------------------------------------------------------------------------

  /** A channel in use is kept; another one is kept only as long as the application refers to it. */
  settle(state) {
    if (state.inUse) {
      this.#channels.set(state.name, state);
      this.#idle.delete(state.name);
    } else {
      this.#channels.delete(state.name);
      this.#idle.set(state.name, new WeakRef(state));
    }
  }

  subscribe(state, end, channel = state.root) {
    const subscription = new Subscription(state, channel, end);
    state.subscriptions.add(subscription);
    this.settle(state);
    if (state.phase === 'joined') {
      subscription.confirm();
    } else if (state.phase === 'idle') {
      state.phase = 'waiting';
      // The cursor of an earlier client applies to the first subscribe of each channel.
      state.after = this.#resumedOnce.has(state.name) ? undefined : this.#options.after;
      this.#join([state]);
    } else {
      this.#connectIfClosed();
    }
    return subscription;
  }

  unsubscribe(state, subscription, error) {
    if (!state.subscriptions.delete(subscription)) return;
    subscription.fail(error ?? new RealtimeError('unsubscribed', 'The subscription was ended before it was confirmed.',
      { channel: state.name }));
    if (state.subscriptions.size === 0) this.#leave(state);
  }

  #leave(state) {
    if (this.#connection?.ready && (state.phase === 'joined' || state.phase === 'joining')) {
      const { connection, asked } = { connection: this.#connection, asked: state.asked };
      // The server may not answer the subscribe that this unsubscribe ended.
      this.#requestUntilAccepted({ op: 'unsubscribe', channel: state.name }, () => state.phase === 'idle', (answer) => {
        if (answer !== null && asked?.names.delete(state.name)) connection.expectOneLess(asked.request);
      });
    }
    clearTimeout(state.timer);
    Object.assign(state, { phase: 'idle', live: false, after: undefined, retries: 0, timer: undefined });
    state.attempt += 1;
    state.seen.clear();
    state.members.clear();
    this.#resumed(state);
    this.settle(state);
  }

  /** Ends all subscriptions to a channel because the server has ended it. */
  #endByServer(state, error) {
    const tracking = state.tracking;
    state.tracking = null;
    for (const settle of [...(tracking?.waiters ?? [])]) settle(failure(error));
    for (const subscription of [...state.subscriptions]) {
      state.subscriptions.delete(subscription);
      subscription.fail(error);
    }
    state.phase = 'idle'; // so that no unsubscribe is sent
    this.#leave(state);
  }

  /** Sends a request, and repeats it while the server is too busy for it and it is still wanted. */
  #requestUntilAccepted(request, wanted, answer) {
    const connection = this.#connection;
    connection.request(request, (frame) => {
      if (frame?.code !== 'rate_limited') {
        answer(frame);
        return;
      }
      this.#within(pause(frame.retryAfter, TRACK_PAUSE_MS), () => {
        if (connection.ready && wanted()) this.#requestUntilAccepted(request, wanted, answer);
        else answer(null);
      });
    });
  }

  #join(states) {
    if (this.#state !== 'open') {
      this.#connectIfClosed();
      return;
    }
    const groups = new Map();
    for (const state of states) {
      state.phase = 'joining';
      state.attempt += 1;
      state.progressAt = now();
      clearTimeout(state.timer);
      if (state.after !== undefined) this.#resuming.add(state);
      const { echo, history } = state.options;
      const request = { op: 'subscribe' };
      if (state.after !== undefined) request.after = state.after;
      if (history > 0) request.history = history;
      if (!echo) request.self = false;
      const key = JSON.stringify(request);
      const group = groups.get(key) ?? { request, states: [] };
      groups.set(key, group);
      group.states.push(state);
    }
    for (const { request, states: members } of groups.values()) {
      for (let at = 0; at < members.length; at += NAMES_PER_FRAME) {
        this.#subscribeFrame(request, members.slice(at, at + NAMES_PER_FRAME));
      }
    }
  }

  #subscribeFrame(request, states) {
    const names = new Map(states.map((state) => [state.name, { state, attempt: state.attempt }]));
    const list = [...names.keys()];
    const asked = { names };
    for (const state of states) state.asked = asked;
    const frame = list.length === 1 ? { ...request, channel: list[0] } : { ...request, channels: list };
    asked.request = this.#connection.request(frame, (answer) => {
      if (answer === null) return; // requested again after the reconnect
      const answered = typeof answer.channel === 'string' ? [answer.channel] : [...names.keys()];
      for (const name of answered) {
        const { state, attempt } = names.get(name) ?? {};
        names.delete(name);
        // It was left or requested again since: this answer is not the one it waits for.
        if (state?.attempt !== attempt || state === undefined) this.#offer(answer.cursor);
        else if (answer.op === 'ok') this.#joined(state, answer);
        else this.#refused(state, refusal(answer, name));
      }
    }, list.length);
  }

  #joined(state, answer) {
    const { after, live, name, attempt } = state;
    Object.assign(state, { phase: 'joined', live: true, after: undefined, retries: 0 });
    if (this.#options.after !== undefined) this.#resumedOnce.add(name);
    this.#resuming.delete(state);
    this.#offer(answer.cursor);
    for (const subscription of state.subscriptions) subscription.confirm();
    if (Array.isArray(answer.presence)) state.present(answer.presence, true);
    if (state.attempt !== attempt) return; // a callback has unsubscribed
    const resumed = live || after !== undefined;
    state.listeners.emit('subscribed', { channel: name, resumed });
    if (resumed && state.attempt === attempt) {
      const recovered = after !== undefined && answer.recovered !== false;
      const ephemeral = after !== undefined && answer.ephemeral !== false;
      const reason = answer.reason ?? (after === undefined ? 'no_cursor' : undefined);
      if (!recovered || !ephemeral) state.listeners.emit('resync', { channel: name, recovered, ephemeral, reason });
    }
    this.#sendState(state);
  }

  #refused(state, error) {
    const again = RETRYABLE.has(error.code) && (state.live || state.retries < FIRST_JOIN_RETRIES);
    if (again) {
      // The channel keeps its `after`, so the session's cursor may advance without it.
      state.phase = 'waiting';
      this.#resumed(state);
      if (error.code === 'token_expired') this.#refreshOnce();
      const first = state.retries === 0;
      this.#rejoinLater(state, error.retryAfter); // before a callback can disconnect
      if (first) this.#report(error, state);
      return;
    }
    const { live, name } = state;
    const { listeners } = state;
    this.#endByServer(state, error);
    this.#report(error, state);
    if (live) listeners.emit('closed', { channel: name, code: error.code, final: true });
  }

  #rejoinLater(state, retryAfter) {
    const { minDelay, maxDelay } = this.#options;
    const delay = Math.min(maxDelay, minDelay * 2 ** state.retries) * (0.5 + Math.random() / 2);
    state.retries += 1;
    clearTimeout(state.timer);
    state.timer = setTimeout(() => {
      if (state.phase === 'waiting' && this.#state === 'open') this.#join([state]);
    }, pause(retryAfter, delay));
  }

  #closedByServer({ channel, code }) {
    const state = this.#channels.get(channel);
    // During a subscribe its answer decides; this frame belongs to the subscription before it.
    if (state?.phase !== 'joined') return;
    if (TEMPORARY.has(code)) {
      state.phase = 'waiting';
      state.after = this.#cursor;
      if (code === 'expired') this.#refreshOnce(); // it is subscribed again once the token is accepted
      else this.#rejoinLater(state);
      state.listeners.emit('closed', { channel, code, final: false });
      return;
    }
    const error = new RealtimeError(String(code), `The server closed channel ${channel}: ${code}.`, { channel });
    const { listeners } = state;
    this.#endByServer(state, error);
    listeners.emit('closed', { channel, code, final: true });
  }

  // ---- the cursor -------------------------------------------------------------------------------

  #offer(cursor) {
    if (typeof cursor === 'string') this.#offered = { cursor, at: now() };
    this.#adopt();
  }

  #adopt() {
    if (this.#resuming.size > 0 || !this.#offered) return;
    const { cursor, at } = this.#offered;
    this.#offered = null;
    this.#cursor = cursor;
    const before = at - this.#connection.overlap;
    for (const state of this.#channels.values()) {
      if (state.after === undefined) state.seen.forget(before, state.options.history);
    }
  }

  #resumed(state) {
    if (this.#resuming.delete(state)) this.#adopt();
  }

  // ---- frames -----------------------------------------------------------------------------------

  #frame(frame) {
    switch (frame.op) {
      case 'messages': return this.#messages(frame);
      case 'cursor': return this.#offer(frame.cursor);
      case 'presence': {
        const state = this.#channels.get(frame.channel);
        if (state?.phase === 'joined' && Array.isArray(frame.events)) state.present(frame.events, frame.full === true);
        return undefined;
      }
      case 'deleted':
        this.#channels.get(frame.channel)?.listeners.emit('deleted', { channel: frame.channel, id: frame.id });
        return undefined;
      case 'closed': return this.#closedByServer(frame);
      case 'status': return this.#status(frame);
      default: return undefined; // a newer server may send operations that this client does not know
    }
  }

  #messages(frame) {
    const state = this.#channels.get(frame.channel);
    if (!state || state.phase === 'idle') return;
    const { attempt } = state;
    state.progressAt = now();
    const reportFrame = (text) => this.#report(new RealtimeError('invalid_frame', text, { channel: state.name }), state);
    if (!Array.isArray(frame.messages)) {
      reportFrame('The server sent messages that are not a list.');
      return;
    }
    const meta = { history: frame.history === true, replay: frame.replay === true };
    // Live messages follow the answer; these belong to an earlier subscription, which has ended.
    if (state.phase === 'joining' && !meta.history && !meta.replay) return;
    for (const message of frame.messages) {
      if (state.attempt !== attempt) return; // a callback has unsubscribed or disconnected
      if (!isObject(message)) {
        reportFrame('The server sent a message that is not an object.');
      } else if (typeof message.id !== 'string' || state.seen.add(message.id, now(), message.type === 'message')) {
        state.deliver(message, meta);
      }
    }
  }

  #status(frame) {
    this.#listeners.emit('status', { status: frame.status });
    if (frame.status === 'token_expiring') this.#refreshOnce();
    // The server disconnects all its clients and spreads their reconnects over time.
    if (frame.status === 'draining') this.#pause = pause(frame.retryAfter, undefined);
  }

  // ---- publishing -------------------------------------------------------------------------------

  async send(state, { type = 'message', event, payload = null, id = uuid() } = {}) {
    const { maxPending, timeout } = this.#options;
    const refused = (code, text) => failure(new RealtimeError(code, text, { channel: state.name, id }));
    if (typeof event !== 'string' || event === '') {
      return refused('invalid_message', 'A message needs an event name: send({ event, payload }).');
    }
    let body;
    try {
      body = JSON.stringify(payload);
    } catch (cause) {
      return refused('invalid_message', `JSON cannot represent the payload: ${cause.message}`);
    }
    if (body === undefined) return refused('invalid_message', 'JSON cannot represent the payload.');
    if (this.#outbox.size >= maxPending) {
      return refused('queue_full', `${maxPending} messages already wait for an answer: send more slowly, or raise maxPending.`);
    }
    const head = JSON.stringify({ op: 'publish', channel: state.name, type, event, id });
    const entry = { text: `${head.slice(0, -1)},"payload":${body}}`, id, channel: state.name, sent: false, refused };
    return new Promise((resolve) => {
      entry.resolve = resolve;
      entry.wait = this.#within(timeout, () => this.#published(entry, refused('timeout', entry.sent
        ? 'The server did not answer in time, so the message may be stored: it is safe to send it again with this id.'
        : 'The message was not sent: there was no connection in time.')));
      this.#outbox.add(entry);
      if (this.#state === 'open') this.#publish(entry);
      else this.#connectIfClosed();
    });
  }

  #publish(entry) {
    const limit = this.#connection.limits.frame;
    if (limit > 0 && longerThan(entry.text, limit - REF_BYTES)) {
      const text = `The message is larger than the ${limit} bytes that the server takes in a frame.`;
      this.#published(entry, entry.refused('payload_too_large', text));
      return;
    }
    entry.sent = true;
    this.#connection.request(entry.text, (answer) => {
      if (answer === null) return; // sent again after the reconnect, under the same id
      if (answer.op === 'ok') this.#published(entry, { data: { id: answer.id ?? entry.id }, error: null });
      else this.#published(entry, failure(refusal(answer, entry.channel, entry.id)));
    });
  }

  #published(entry, result) {
    if (!this.#outbox.delete(entry)) return;
    this.#waits.delete(entry.wait);
    entry.resolve(result);
  }

  // ---- presence ---------------------------------------------------------------------------------

  /** Shows this client as present. One update is sent at a time; of those that wait only the newest is sent. */
  async track(state, presence) {
    let copy;
    try {
      copy = JSON.stringify(presence);
      if (!isObject(presence)) throw new TypeError('it is not an object.');
    } catch (cause) {
      const text = `track(state) cannot send this state: ${cause.message}`;
      return failure(new RealtimeError('invalid_message', text, { channel: state.name }));
    }
    return new Promise((resolve) => {
      state.tracking ??= { waiters: new Set(), sending: false, fresh: false, shown: null, pausedUntil: 0, hold: null };
      const { tracking } = state;
      tracking.text = copy;
      tracking.fresh = true;
      this.#addWaiter(tracking.waiters, resolve, state);
      tracking.hold ??= this.subscribe(state, (subscription) => this.unsubscribe(state, subscription));
      this.#sendState(state);
    });
  }

  #addWaiter(waiters, resolve, state) {
    const settle = (result) => {
      waiters.delete(settle);
      this.#waits.delete(wait);
      resolve(result);
    };
    const wait = this.#within(this.#options.timeout, () => {
      settle(failure(new RealtimeError('timeout', 'The server did not answer in time.', { channel: state.name })));
    });
    waiters.add(settle);
  }

  #sendState(state) {
    const { tracking } = state;
    if (!tracking?.fresh || tracking.sending || state.phase !== 'joined' || this.#state !== 'open') return;
    if (tracking.pausedUntil > now()) return; // a later tick sends it
    const settles = [...tracking.waiters];
    const { text } = tracking;
    tracking.sending = true;
    tracking.fresh = false;
    const head = JSON.stringify({ op: 'track', channel: state.name });
    this.#connection.request(`${head.slice(0, -1)},"state":${text}}`, (answer) => {
      tracking.sending = false;
      if (answer === null) return; // sent again after the reconnect
      const again = answer.op === 'error' && text === tracking.shown; // sent again after a reconnect
      if (answer.op === 'error' && (again ? RETRYABLE.has(answer.code) : answer.code === 'rate_limited')) {
        tracking.fresh = true;
        tracking.pausedUntil = now() + pause(answer.retryAfter, TRACK_PAUSE_MS);
        return;
      }
      const error = answer.op === 'ok' ? null : refusal(answer, state.name);
      if (!error) tracking.shown = text;
      for (const settle of settles) settle(error ? failure(error) : { data: {}, error: null });
      if (state.tracking !== tracking) return;
      if (!error || tracking.fresh) this.#sendState(state);
      else if (again || tracking.shown === null) this.#untracked(state);
      else tracking.text = tracking.shown; // the members still see it
      if (again && settles.length === 0) this.#report(error, state); // no call waits for it
    });
  }

  #untracked(state) {
    const { hold } = state.tracking;
    state.tracking = null;
    hold.unsubscribe();
  }

  async untrack(state) {
    const { tracking } = state;
    if (!tracking) return { data: {}, error: null };
    const text = 'Tracking ended before the server confirmed the state.';
    for (const settle of tracking.waiters) settle(failure(new RealtimeError('untracked', text, { channel: state.name })));
    return new Promise((resolve) => {
      if (this.#state === 'open' && state.phase === 'joined') {
        const waiters = new Set();
        this.#addWaiter(waiters, resolve, state);
        const wanted = () => state.tracking === null && state.phase === 'joined';
        this.#requestUntilAccepted({ op: 'untrack', channel: state.name }, wanted, (answer) => {
          // If the connection or the subscription has ended, so has the presence.
          const done = answer === null || answer.op === 'ok';
          for (const settle of waiters) settle(done ? { data: {}, error: null } : failure(refusal(answer, state.name)));
        });
      } else {
        resolve({ data: {}, error: null });
      }
      this.#untracked(state);
    });
  }

  // ---- connecting -------------------------------------------------------------------------------

  /** Connects because a subscription or a publish needs it. */
  #connectIfClosed() {
    if (this.#state === 'closed') this.#open();
  }

  #open() {
    clearTimeout(this.#retryTimer);
    if (this.#state === 'closed') {
      this.#failures = 0;
      this.#everOpen = false;
      this.#lastError = null;
      globalThis.addEventListener?.('online', this.#online);
    }
    this.#state = 'connecting';
    this.#leaveConnection();
    this.#startTicking();
    this.#attempt += 1;
    this.#dial(this.#attempt).catch((cause) => this.#stop(asError(cause)));
  }

  async #dial(attempt) {
    const Socket = await findWebSocket(this.#options.WebSocket);
    if (attempt !== this.#attempt) return;
    let token;
    try {
      token = await this.#accessToken();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      if (!this.#everOpen) throw error;
      this.#report(error);
      if (attempt === this.#attempt) this.#retry(error); // else a callback has connected or disconnected
      return;
    }
    if (attempt !== this.#attempt) return;
    const connection = new Connection(new Socket(this.#url), token, {
      ready: (session) => this.#ready(session),
      frame: (frame) => this.#frame(frame),
      report: (error) => this.#report(error, this.#channels.get(error.channel)),
      closed: (end) => { if (this.#connection === connection) this.#lost(end); },
    });
    this.#connection = connection;
  }

  /** Returns the token to present now; throws if the application's function fails or takes too long. */
  async #accessToken() {
    if (typeof this.#token !== 'function') return this.#token;
    try {
      return await new Promise((resolve, reject) => {
        const wait = this.#within(HANDSHAKE_MS, () => reject(new Error('it took too long')));
        Promise.resolve(this.#token()).then(resolve, reject).finally(() => this.#waits.delete(wait));
      });
    } catch (cause) {
      throw new RealtimeError('token_unavailable', `accessToken() failed: ${cause?.message ?? cause}`, { cause });
    }
  }

  #ready(session) {
    this.#state = 'open';
    this.#everOpen = true;
    this.#openAt = now();
    this.#startTicking(); // now that the heartbeat is known
    // Channels before publishes: their subscriptions then receive what is published.
    this.#join([...this.#channels.values()].filter((state) => state.phase === 'waiting'));
    for (const entry of [...this.#outbox]) this.#publish(entry);
    for (const { resolve } of this.#connecting.splice(0)) resolve();
    this.#listeners.emit('connect', session);
  }

  #lost({ code, reason, refusal: refused }) {
    const wasOpen = this.#state === 'open';
    this.#connection = null;
    this.#state = 'waiting';
    if (wasOpen && now() - this.#openAt > STABLE_MS) this.#failures = 0;
    this.#suspend(code);
    const attempt = this.#attempt;
    if (wasOpen) this.#listeners.emit('disconnect', { code, reason });
    if (this.#state !== 'waiting' || attempt !== this.#attempt) return; // a callback has connected or disconnected
    const final = code >= 3500 && code < 4000;
    const error = (final && refused) || new RealtimeError(final ? 'closed' : 'unreachable', final
      ? `The server closed the connection and refuses another (${code}): ${reason || 'it gave no reason'}.`
      : `Cannot connect to ${this.#options.baseUrl} (${code}${reason ? `: ${reason}` : ''}).`);
    // A function may return a better token the next time; a string stays the same.
    const another = TOKEN_CODES.has(error.code) && typeof this.#token === 'function' && this.#everOpen;
    const told = wasOpen && error === refused; // it arrived as a frame, which was reported already
    if (final && !another) {
      this.#stop(error, { quiet: told });
    } else {
      if (another && !told) this.#report(error);
      if (attempt === this.#attempt) this.#retry(error);
    }
  }

  #retry(error) {
    const { minDelay, maxDelay } = this.#options;
    const delay = this.#pause ?? Math.min(maxDelay, minDelay * 2 ** this.#failures) * (0.25 + 0.75 * Math.random());
    this.#pause = undefined;
    this.#failures += 1;
    this.#lastError = error;
    this.#state = 'waiting';
    this.#retryTimer = setTimeout(() => this.#open(), delay);
    this.#listeners.emit('reconnecting', { attempt: this.#failures, delay, reason: error.message });
  }

  /** Puts everything that depends on the connection into the state from which the next one resumes it. */
  #suspend(code) {
    for (const state of this.#channels.values()) {
      clearTimeout(state.timer);
      if (state.phase === 'joined') state.after = this.#cursor;
      if (state.phase !== 'idle') state.phase = 'waiting';
      state.attempt += 1; // later frames of this connection are not for it
      if (state.tracking) state.tracking.fresh = true;
    }
    this.#resuming.clear();
    this.#offered = null;
    const sent = [...this.#outbox].filter((entry) => entry.sent);
    for (const entry of sent) entry.sent = false;
    if (code === 1009 && sent.length > 0) {
      // The server does not say which frame was too big. Sent again, it would end every connection.
      const largest = sent.reduce((one, other) => (other.text.length > one.text.length ? other : one));
      const text = 'The server closed the connection because of the size of this message.';
      this.#published(largest, largest.refused('payload_too_large', text));
    }
  }

  #stop(error, { quiet = false } = {}) {
    const wasOpen = this.#state === 'open';
    clearTimeout(this.#retryTimer);
    clearInterval(this.#ticker);
    this.#ticking = 0;
    globalThis.removeEventListener?.('online', this.#online);
    this.#attempt += 1;
    this.#state = 'closed';
    this.#leaveConnection();
    const waiting = this.#connecting.splice(0);
    for (const { reject } of waiting) reject(error);
    for (const entry of [...this.#outbox]) this.#published(entry, entry.refused(error.code, error.message));
    for (const state of [...this.#channels.values()]) {
      for (const settle of [...(state.tracking?.waiters ?? [])]) settle(failure(error));
      for (const subscription of state.subscriptions) subscription.fail(error);
    }
    for (const { expire } of this.#waits) expire(); // the remaining waits are for tokens
    this.#waits.clear();
    if (wasOpen) this.#listeners.emit('disconnect', { code: 1000, reason: error.message });
    // A pending connect() has rejected with it.
    if (!quiet) this.#report(error, undefined, waiting.length > 0);
  }

  #leaveConnection() {
    const connection = this.#connection;
    this.#connection = null;
    connection?.drop('', 1000);
    this.#suspend();
  }

  /** Presents the newest token on the open connection. */
  async #refresh() {
    const connection = this.#connection;
    const token = await this.#accessToken();
    if (!token || !connection.ready) return; // there is no new token, or the next connect presents one
    await new Promise((resolve, reject) => {
      connection.request({ op: 'auth', token }, (answer) => {
        if (answer === null || answer.op === 'ok') resolve();
        else reject(refusal(answer));
      });
    });
    if (connection.ready) this.#join([...this.#channels.values()].filter((state) => state.phase === 'waiting'));
  }

  /** Refreshes the token because the server asks for it; one refresh at a time on a connection. */
  #refreshOnce() {
    const connection = this.#connection;
    if (this.#refreshing === connection || typeof this.#token !== 'function') return;
    this.#refreshing = connection;
    this.#refresh()
      .catch((error) => { if (connection.ready) this.#report(asError(error)); })
      .finally(() => { if (this.#refreshing === connection) this.#refreshing = null; });
  }

  // ---- timeouts and errors ----------------------------------------------------------------------

  #within(milliseconds, expire) {
    const wait = { deadline: now() + milliseconds, expire };
    this.#waits.add(wait);
    return wait;
  }

  #startTicking() {
    const { timeout, connectTimeout } = this.#options;
    const period = Math.min(1_000, timeout / 4, connectTimeout / 4, (this.#connection?.heartbeat ?? 1_000) / 2);
    // Quick attempts would restart it each time, and it would never tick.
    if (this.#ticking === period) return;
    clearInterval(this.#ticker);
    this.#ticking = period;
    this.#ticker = setInterval(() => this.#tick(), Math.max(period, SHORTEST_TICK_MS));
  }

  #tick() {
    const at = now();
    for (const wait of [...this.#waits]) {
      if (at > wait.deadline && this.#waits.delete(wait)) wait.expire();
    }
    for (const state of [...this.#channels.values()]) {
      this.#sendState(state);
      if (state.phase === 'joining' && at - state.progressAt > this.#options.timeout) {
        this.#connection?.drop(`The server did not answer the subscription to ${state.name} in time.`);
      }
    }
    this.#connection?.check();
  }

  #callbackFailed(cause, kind, channel) {
    const text = `A callback of ${JSON.stringify(kind)} failed: ${cause?.message ?? cause}`;
    const error = new RealtimeError('callback_failed', text, { channel, cause });
    // A callback for errors that fails would otherwise be called with its own failures forever.
    if (kind === 'error') console.error('rowcast:', error);
    else this.#report(error);
  }

  #report(error, state, told = false) {
    const heard = state?.listeners.emit('error', error);
    if (!this.#listeners.emit('error', error) && !heard && !told) console.error('rowcast:', error);
  }
}

/** Makes a client; `client.realtime` connects on connect(), or when a subscription or publish needs it. */
export function createClient(options = {}) {
  if (typeof options.baseUrl !== 'string') {
    throw new TypeError('createClient({ baseUrl }) takes the address of the server, such as "https://example.com".');
  }
  const given = Object.entries(options).filter(([, value]) => value !== undefined && value !== null);
  return { realtime: new Realtime({ ...DEFAULTS, ...Object.fromEntries(given) }) };
}

export default createClient;
