/**
 * The rowcast client: one module without dependencies, for browsers and Node.
 *
 * Read it from the bottom up: `createClient` makes a `Realtime`, which owns everything that outlives a
 * socket (channels, the session's cursor, unanswered publishes). A `Link` is one socket from its opening
 * to its end and knows nothing of channels. What a channel must remember so that a resume neither loses
 * nor repeats a message is in `Seen`.
 *
 * The rule of resuming, in one place: the server's cursor says "everything of this session up to here".
 * The newest one wins, and ids that came since are kept, so that what a replay repeats is dropped. While
 * channels are being resumed a new cursor must not replace the old one: it would cover channels whose
 * replay has not come yet, and a second loss of the socket would then skip it.
 */

const HANDSHAKE_MS = 10_000;
const PING_ANSWER_MS = 10_000;
const CLOSE_MS = 1_000;
const STABLE_MS = 5_000;
const SHORTEST_HEARTBEAT_MS = 50;
const SHORTEST_TICK_MS = 20;
const REF_BYTES = 40; // what a request's ref adds to its frame
const LONGEST_PAUSE_S = 3_600;
// Servers bound the unanswered requests of a session, each name of a subscription counted.
const WINDOW = 64;
const NAMES_PER_FRAME = 50;
const FIRST_JOIN_RETRIES = 5;
const TRACK_PAUSE_MS = 1_000;
const DEFAULTS = { timeout: 30_000, connectTimeout: 20_000, minDelay: 500, maxDelay: 30_000, maxPending: 5_000 };

/** Kinds of `channel.on()` that no message can reach, whatever its sender calls his event. */
const RESERVED = new Set(['message', 'presence', '*', 'error', 'closed', 'deleted', 'resync', 'subscribed']);
/** Refusals that speak of the moment, not of the caller: the same request may succeed later. */
const RETRYABLE = new Set(['unavailable', 'rate_limited', 'internal', 'token_expired']);
/** Codes of a closed channel after which the client subscribes again by itself. */
const PASSING = new Set(['lagging', 'expired', 'unavailable']);
const TOKEN_CODES = new Set(['invalid_token', 'token_expired']);

const now = () => performance.now();
const pause = (seconds, otherwise) => (seconds > 0 ? Math.min(seconds, LONGEST_PAUSE_S) * 1000 : otherwise);
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** What went wrong: `code` is for programs, `message` for people, `channel` is set when it concerns one. */
export class RealtimeError extends Error {
  constructor(code, message, details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'RealtimeError';
    this.code = code;
    for (const key of ['channel', 'retryAfter', 'id']) if (details[key] !== undefined) this[key] = details[key];
  }

  /** An Error's message is not enumerable; without this a logged error would be `{}`. */
  toJSON() {
    return { code: this.code, message: this.message, channel: this.channel, retryAfter: this.retryAfter, id: this.id };
  }
}

const failure = (error) => ({ data: null, error });
const asError = (cause) => (cause instanceof RealtimeError ? cause
  : new RealtimeError('failed', `The client could not connect: ${cause?.message ?? cause}`, { cause }));

const refusal = (frame, channel, id) => new RealtimeError(
  typeof frame.code === 'string' ? frame.code : 'internal',
  typeof frame.message === 'string' ? frame.message : 'The server refused the request without saying why.',
  { channel: typeof frame.channel === 'string' ? frame.channel : channel, retryAfter: frame.retryAfter, id },
);

/** `randomUUID` exists on secure origins only; a page on a plain http address still needs its keys. */
function uuid() {
  if (globalThis.crypto.randomUUID) return globalThis.crypto.randomUUID();
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/** UTF-8 is at most three bytes per UTF-16 unit, so short texts need no encoding to be called short. */
function longerThan(text, bytes) {
  return text.length > bytes || (text.length * 3 > bytes && new TextEncoder().encode(text).length > bytes);
}

async function findWebSocket(given) {
  if (given) return given;
  if (globalThis.WebSocket) return globalThis.WebSocket;
  if (globalThis.process?.versions?.node) {
    // A literal here would make bundlers pull `ws` into pages.
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

/** Callbacks by kind. One that throws is reported and stops none of the others. */
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

  /** Returns whether anyone was there to hear it. */
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

/** The ids of one channel that a replay may repeat, in the order they came. */
class Seen {
  #ids = new Map();
  #durable = 0;

  /** Returns false for an id that was there already. */
  add(id, at, durable) {
    if (this.#ids.has(id)) return false;
    this.#ids.set(id, { at, durable });
    this.#durable += durable;
    return true;
  }

  /** Drops ids that came before `at`, except the newest `keep` durable ones, which a history may repeat. */
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

/** One socket, from its opening to its end: handshake, questions and answers, liveness. */
class Link {
  ready = false;
  limits = {};
  heartbeat = 25_000;
  overlap = 10_000;
  #socket;
  #on;
  #ref = 0;
  #tickets = new Map();
  #queue = [];
  #unanswered = 0;
  #openedAt = now();
  #heardAt = now();
  #pingedAt = null;
  #refusal = null;
  #trouble = '';
  #token;

  /** `on` is `{ready, frame, report, closed}`; `closed` is called exactly once. */
  constructor(socket, token, on) {
    this.#socket = socket;
    this.#token = token;
    this.#on = on;
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onerror = (event) => { this.#trouble = event?.message ?? ''; };
    socket.onclose = (event) => this.#end(event.code, event.reason);
  }

  /**
   * Sends a request, an object or its JSON text, when the window has room for what it asks.
   * `answer(frame)` gets each of its answers; it gets null when the socket ended before.
   * Returns a ticket for `forget`.
   */
  ask(request, answer, asks = 1) {
    const text = typeof request === 'string' ? request : JSON.stringify(request);
    const ticket = { ref: String(++this.#ref), text, answer, asks };
    this.#queue.push(ticket);
    this.#flow();
    return ticket;
  }

  /** Waits for one answer less: the server sends none to a subscription that was ended meanwhile. */
  forget(ticket) {
    ticket.asks -= 1;
    this.#unanswered -= 1;
    if (ticket.asks === 0) this.#tickets.delete(ticket.ref);
    this.#flow();
  }

  #flow() {
    while (this.#queue.length > 0 && (this.#unanswered === 0 || this.#unanswered + this.#queue[0].asks <= WINDOW)) {
      const ticket = this.#queue.shift();
      this.#unanswered += ticket.asks;
      this.#write(ticket);
    }
  }

  #write(ticket) {
    this.#tickets.set(ticket.ref, ticket);
    this.#socket.send(`${ticket.text.slice(0, -1)},"ref":"${ticket.ref}"}`);
  }

  /** Called on every tick: a socket that says nothing for too long is asked, and left when it stays silent. */
  check() {
    const at = now();
    if (!this.ready) {
      if (at - this.#openedAt > HANDSHAKE_MS) this.drop('The server did not finish the handshake in time.');
    } else if (this.#pingedAt !== null) {
      if (at - this.#pingedAt > Math.min(PING_ANSWER_MS, this.heartbeat)) this.drop('The server stopped answering.');
    } else if (at - this.#heardAt > 2 * this.heartbeat) {
      this.#pingedAt = at;
      // Past the window: it is full when the server is stuck.
      this.#unanswered += 1;
      this.#write({ ref: String(++this.#ref), text: '{"op":"ping"}', answer: () => {}, asks: 1 });
    }
  }

  /** Leaves the socket at once, without waiting for the other side's consent. */
  drop(reason, code = 1006) {
    const socket = this.#socket;
    this.#end(code, reason);
    socket.close();
    // A dead peer never answers a close; `ws` would keep the process for it.
    const leave = () => socket.terminate?.();
    if (code !== 1000) leave();
    else setTimeout(leave, CLOSE_MS).unref?.();
  }

  #end(code, reason) {
    if (!this.#on) return;
    const { closed } = this.#on;
    this.#on = null;
    this.ready = false;
    const tickets = [...this.#tickets.values(), ...this.#queue];
    this.#tickets.clear();
    this.#queue = [];
    const socket = this.#socket;
    socket.onmessage = socket.onclose = null;
    socket.onerror = () => {}; // `ws` throws when nobody listens to an error that follows a close
    for (const { answer } of tickets) answer(null);
    closed({ code, reason: reason || this.#trouble, refusal: this.#refusal });
  }

  #receive(data) {
    this.#heardAt = now();
    this.#pingedAt = null;
    const { report } = this.#on;
    this.#refusal = null;
    try {
      const frame = JSON.parse(data);
      if (!isObject(frame) || typeof frame.op !== 'string') throw new TypeError('It is no object with an op.');
      this.#dispatch(frame);
    } catch (cause) {
      const text = `The server sent a frame this client cannot use: ${cause.message}`;
      report(new RealtimeError('invalid_frame', text, { cause }));
    }
  }

  #dispatch(frame) {
    if (frame.op === 'welcome') {
      this.#welcome(frame);
    } else if (frame.op !== 'ok' && frame.op !== 'error') {
      if (this.ready) this.#on.frame(frame);
    } else if (this.#tickets.has(frame.ref)) {
      const ticket = this.#tickets.get(frame.ref);
      // An error that names no channel refuses a whole subscribe frame.
      const answered = frame.op === 'error' && typeof frame.channel !== 'string' ? ticket.asks : 1;
      for (let count = 0; count < answered; count += 1) this.forget(ticket);
      ticket.answer(frame);
    } else if (frame.op === 'error' && (frame.ref === null || frame.ref === undefined)) {
      // When nothing comes after it, it says why the socket was closed.
      this.#refusal = refusal(frame);
      if (this.ready) this.#on.report(this.#refusal);
    }
  }

  #welcome(frame) {
    if (isObject(frame.limits)) this.limits = frame.limits;
    if (frame.heartbeat > 0) this.heartbeat = Math.max(frame.heartbeat * 1000, SHORTEST_HEARTBEAT_MS);
    const overlap = frame.replayOverlap ?? this.limits.replayOverlap;
    if (overlap >= 0) this.overlap = overlap * 1000;
    // Nothing else is sent before the answer: it would be judged as somebody else. Without a token it
    // is a ping: the server greets first, and only what it answers shows that it took the key.
    this.ask(this.#token ? { op: 'auth', token: this.#token } : { op: 'ping' }, (answer) => {
      if (answer?.op === 'ok') this.#begin(frame, answer);
      else if (answer) {
        this.#refusal = refusal(answer);
        const passing = RETRYABLE.has(this.#refusal.code) && !TOKEN_CODES.has(this.#refusal.code);
        this.drop(this.#refusal.message, passing ? 1013 : 3500);
      }
    });
  }

  #begin({ session }, { user, role }) {
    this.ready = true;
    this.#refusal = null;
    this.#on.ready({ session, user: user ?? null, role });
  }
}

/** One `.subscribe()`. Several of one channel share a single subscription on the wire. */
class Subscription {
  #state;
  #settle;

  constructor(state, channel, end) {
    this.#state = state;
    this.channel = channel;
    this.ready = new Promise((resolve, reject) => { this.#settle = { resolve, reject }; });
    // Nobody has to await it: a refusal is an `error` event as well.
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

/** What the client knows of one channel name; every `Channel` object of that name shares it. */
class ChannelState {
  options = { echo: true, history: 0 };
  subscriptions = new Set();
  phase = 'idle'; // idle: not wanted; waiting: wanted, not asked for now; joining: asked; joined
  live = false; //   was joined at least once since it is wanted
  after = undefined; // the cursor its next join resumes from; ids are kept as long as it is set
  turn = 0; //       which join an answer belongs to
  asked = null; //   the frame that asked for it
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

  /** Applies presence events; a whole list (`full`) becomes the events that lead to it from what was known. */
  present(events, full) {
    const entries = events.filter((event) => isObject(event) && typeof event.key === 'string');
    const { turn } = this;
    for (const change of full ? this.#changes(entries) : entries) {
      if (this.turn !== turn) return; // a callback has just unsubscribed
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

/** A channel by its name. `.on()` returns a channel that owns its handlers: they end with its subscription. */
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

  /** Ends every subscription of this channel, and the presence in it. */
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

/** What outlives sockets: channels, the session's cursor, unanswered publishes, the will to reconnect. */
class Realtime {
  #options;
  #url;
  #token;
  #listeners = new Listeners((cause, kind) => this.#callbackFailed(cause, kind));
  #state = 'closed'; // closed | connecting | open | waiting
  #link = null;
  #attempt = 0;
  #failures = 0;
  #everOpen = false;
  #openAt = 0;
  #trouble = null;
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
  #taken = new Set();
  #online = () => { if (this.#state === 'waiting') this.#open(); };

  constructor(options) {
    this.#options = options;
    this.#url = socketUrl(options.baseUrl, options.anonKey);
    this.#token = options.accessToken;
    this.#cursor = options.after;
  }

  // ---- what applications call -------------------------------------------------------------------

  get state() {
    return this.#state;
  }

  /** Everything up to here was received and given to callbacks; `createClient({ after })` resumes from it. */
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
    if (this.#state === 'open') return changed ? this.#become() : Promise.resolve();
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
    const error = this.#trouble ?? new RealtimeError('unreachable', `There is no answer from ${this.#options.baseUrl}.`);
    waiter.reject(error);
    // With a subscription or a message waiting the attempts go on; else nobody wants them any more.
    const wanted = this.#outbox.size > 0 || [...this.#channels.values()].some((state) => state.phase !== 'idle');
    if (!wanted && this.#connecting.length === 0) this.#stop(error, { quiet: true });
  }

  /** Closes the socket. Subscriptions stay wanted: a later connect() takes them up where they stopped. */
  disconnect() {
    if (this.#state === 'closed') return;
    this.#stop(new RealtimeError('disconnected', 'The client was disconnected.'), { quiet: true });
  }

  /** Changes whom this connection speaks for, without closing it. */
  async setAuth(accessToken) {
    this.#token = accessToken;
    if (this.#state === 'open') await this.#become();
    else if (this.#state === 'connecting') this.#open();
  }

  /** A session may go from nobody to somebody; for somebody else the server wants another one. */
  async #become() {
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
        throw new TypeError(`Channel ${name} is subscribed with another ${key}: unsubscribe first.`);
      }
      state.options[key] = options[key];
    }
    return state.root;
  }

  // ---- channels ---------------------------------------------------------------------------------

  /** A channel in use is held; one that is not lives as long as the application holds it. */
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
      // A process that resumes an older session does so for every channel it takes up, once.
      state.after = this.#taken.has(state.name) ? undefined : this.#options.after;
      this.#join([state]);
    } else {
      this.#want();
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
    if (this.#link?.ready && (state.phase === 'joined' || state.phase === 'joining')) {
      const { link, asked } = { link: this.#link, asked: state.asked };
      // Either way it is over; the subscription it ended may remain without an answer.
      this.#insist({ op: 'unsubscribe', channel: state.name }, () => state.phase === 'idle', (answer) => {
        if (answer !== null && asked?.names.delete(state.name)) link.forget(asked.ticket);
      });
    }
    clearTimeout(state.timer);
    Object.assign(state, { phase: 'idle', live: false, after: undefined, retries: 0, timer: undefined });
    state.turn += 1;
    state.seen.clear();
    state.members.clear();
    this.#resumed(state);
    this.settle(state);
  }

  /** Ends all subscriptions of a channel because the server said so. */
  #expel(state, error) {
    const tracking = state.tracking;
    state.tracking = null;
    for (const settle of [...(tracking?.waiters ?? [])]) settle(failure(error));
    for (const subscription of [...state.subscriptions]) {
      state.subscriptions.delete(subscription);
      subscription.fail(error);
    }
    state.phase = 'idle'; // the server knows already
    this.#leave(state);
  }

  /** Asks again what the server was too busy for, while it is still wanted; else it would stay as it was. */
  #insist(request, wanted, answer) {
    const link = this.#link;
    link.ask(request, (frame) => {
      if (frame?.code !== 'rate_limited') {
        answer(frame);
        return;
      }
      this.#within(pause(frame.retryAfter, TRACK_PAUSE_MS), () => {
        if (link.ready && wanted()) this.#insist(request, wanted, answer);
        else answer(null);
      });
    });
  }

  #join(states) {
    if (this.#state !== 'open') {
      this.#want();
      return;
    }
    const groups = new Map();
    for (const state of states) {
      state.phase = 'joining';
      state.turn += 1;
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
    const names = new Map(states.map((state) => [state.name, { state, turn: state.turn }]));
    const list = [...names.keys()];
    const asked = { names };
    for (const state of states) state.asked = asked;
    const frame = list.length === 1 ? { ...request, channel: list[0] } : { ...request, channels: list };
    asked.ticket = this.#link.ask(frame, (answer) => {
      if (answer === null) return; // asked again after the reconnect
      const answered = typeof answer.channel === 'string' ? [answer.channel] : [...names.keys()];
      for (const name of answered) {
        const { state, turn } = names.get(name) ?? {};
        names.delete(name);
        // Meanwhile left, or asked for again: this answer is not the one it waits for.
        if (state?.turn !== turn || state === undefined) this.#offer(answer.cursor);
        else if (answer.op === 'ok') this.#joined(state, answer);
        else this.#refused(state, refusal(answer, name));
      }
    }, list.length);
  }

  #joined(state, answer) {
    const { after, live, name, turn } = state;
    Object.assign(state, { phase: 'joined', live: true, after: undefined, retries: 0 });
    if (this.#options.after !== undefined) this.#taken.add(name);
    this.#resuming.delete(state);
    this.#offer(answer.cursor);
    for (const subscription of state.subscriptions) subscription.confirm();
    if (Array.isArray(answer.presence)) state.present(answer.presence, true);
    if (state.turn !== turn) return; // a callback has just unsubscribed
    const resumed = live || after !== undefined;
    state.listeners.emit('subscribed', { channel: name, resumed });
    if (resumed && state.turn === turn) {
      const recovered = after !== undefined && answer.recovered !== false;
      const ephemeral = after !== undefined && answer.ephemeral !== false;
      const reason = answer.reason ?? (after === undefined ? 'no_cursor' : undefined);
      if (!recovered || !ephemeral) state.listeners.emit('resync', { channel: name, recovered, ephemeral, reason });
    }
    this.#pump(state);
  }

  #refused(state, error) {
    const again = RETRYABLE.has(error.code) && (state.live || state.retries < FIRST_JOIN_RETRIES);
    if (again) {
      // Its `after` stays with it, so the session's cursor may go on without this channel.
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
    this.#expel(state, error);
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
    // While a join is under way its answer decides; this speaks of the subscription before it.
    if (state?.phase !== 'joined') return;
    if (PASSING.has(code)) {
      state.phase = 'waiting';
      state.after = this.#cursor;
      if (code === 'expired') this.#refreshOnce(); // it is joined again when that has succeeded
      else this.#rejoinLater(state);
      state.listeners.emit('closed', { channel, code, final: false });
      return;
    }
    const error = new RealtimeError(String(code), `The server closed channel ${channel}: ${code}.`, { channel });
    const { listeners } = state;
    this.#expel(state, error);
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
    const before = at - this.#link.overlap;
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
      default: return undefined; // a newer server may say more than this client knows
    }
  }

  #messages(frame) {
    const state = this.#channels.get(frame.channel);
    if (!state || state.phase === 'idle') return;
    const { turn } = state;
    state.progressAt = now();
    const strange = (text) => this.#report(new RealtimeError('invalid_frame', text, { channel: state.name }), state);
    if (!Array.isArray(frame.messages)) {
      strange('The server sent messages that are no list.');
      return;
    }
    const meta = { history: frame.history === true, replay: frame.replay === true };
    // Live ones come behind the answer; these are of a subscription before it, which was ended.
    if (state.phase === 'joining' && !meta.history && !meta.replay) return;
    for (const message of frame.messages) {
      if (state.turn !== turn) return; // a callback has just unsubscribed, or disconnected
      if (!isObject(message)) {
        strange('The server sent a message that is no object.');
      } else if (typeof message.id !== 'string' || state.seen.add(message.id, now(), message.type === 'message')) {
        state.deliver(message, meta);
      }
    }
  }

  #status(frame) {
    this.#listeners.emit('status', { status: frame.status });
    if (frame.status === 'token_expiring') this.#refreshOnce();
    // Thousands are sent away with this one; the server has dealt out when each shall come back.
    if (frame.status === 'draining') this.#pause = pause(frame.retryAfter, undefined);
  }

  // ---- publishing -------------------------------------------------------------------------------

  async send(state, { type = 'message', event, payload = null, id = uuid() } = {}) {
    const { maxPending, timeout } = this.#options;
    const refused = (code, text) => failure(new RealtimeError(code, text, { channel: state.name, id }));
    if (typeof event !== 'string' || event === '') {
      return refused('invalid_message', 'A message needs an event: send({ event, payload }).');
    }
    let body;
    try {
      body = JSON.stringify(payload);
    } catch (cause) {
      return refused('invalid_message', `The payload cannot be written as JSON: ${cause.message}`);
    }
    if (body === undefined) return refused('invalid_message', 'The payload cannot be written as JSON.');
    if (this.#outbox.size >= maxPending) {
      return refused('queue_full', `${maxPending} messages wait for an answer already: send slower, or raise maxPending.`);
    }
    const head = JSON.stringify({ op: 'publish', channel: state.name, type, event, id });
    const entry = { text: `${head.slice(0, -1)},"payload":${body}}`, id, channel: state.name, sent: false, refused };
    return new Promise((resolve) => {
      entry.resolve = resolve;
      entry.wait = this.#within(timeout, () => this.#published(entry, refused('timeout', entry.sent
        ? 'The server did not answer in time, so the message may be stored: sending it again with this id is safe.'
        : 'There was no connection in time: the message was not sent.')));
      this.#outbox.add(entry);
      if (this.#state === 'open') this.#publish(entry);
      else this.#want();
    });
  }

  #publish(entry) {
    const limit = this.#link.limits.frame;
    if (limit > 0 && longerThan(entry.text, limit - REF_BYTES)) {
      const text = `The message is larger than the ${limit} bytes the server takes in one frame.`;
      this.#published(entry, entry.refused('payload_too_large', text));
      return;
    }
    entry.sent = true;
    this.#link.ask(entry.text, (answer) => {
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

  /** Updates coalesce: one is under way at a time, and of those that wait only the newest state is sent. */
  async track(state, presence) {
    let copy;
    try {
      copy = JSON.stringify(presence);
      if (!isObject(presence)) throw new TypeError('it is no object.');
    } catch (cause) {
      const text = `track(state) cannot send this state: ${cause.message}`;
      return failure(new RealtimeError('invalid_message', text, { channel: state.name }));
    }
    return new Promise((resolve) => {
      state.tracking ??= { waiters: new Set(), sending: false, fresh: false, shown: null, pausedUntil: 0, hold: null };
      const { tracking } = state;
      tracking.text = copy;
      tracking.fresh = true;
      this.#waiter(tracking.waiters, resolve, state);
      tracking.hold ??= this.subscribe(state, (subscription) => this.unsubscribe(state, subscription));
      this.#pump(state);
    });
  }

  #waiter(waiters, resolve, state) {
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

  #pump(state) {
    const { tracking } = state;
    if (!tracking?.fresh || tracking.sending || state.phase !== 'joined' || this.#state !== 'open') return;
    if (tracking.pausedUntil > now()) return; // a tick comes back to it
    const settles = [...tracking.waiters];
    const { text } = tracking;
    tracking.sending = true;
    tracking.fresh = false;
    const head = JSON.stringify({ op: 'track', channel: state.name });
    this.#link.ask(`${head.slice(0, -1)},"state":${text}}`, (answer) => {
      tracking.sending = false;
      if (answer === null) return; // tracked again after the reconnect
      const again = answer.op === 'error' && text === tracking.shown; // after a reconnect
      if (answer.op === 'error' && (again ? RETRYABLE.has(answer.code) : answer.code === 'rate_limited')) {
        tracking.fresh = true;
        tracking.pausedUntil = now() + pause(answer.retryAfter, TRACK_PAUSE_MS);
        return;
      }
      const error = answer.op === 'ok' ? null : refusal(answer, state.name);
      if (!error) tracking.shown = text;
      for (const settle of settles) settle(error ? failure(error) : { data: {}, error: null });
      if (state.tracking !== tracking) return;
      if (!error || tracking.fresh) this.#pump(state);
      else if (again || tracking.shown === null) this.#untracked(state);
      else tracking.text = tracking.shown; // the others still see it
      if (again && settles.length === 0) this.#report(error, state); // nobody awaits it
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
    const text = 'The presence was taken back before it was confirmed.';
    for (const settle of tracking.waiters) settle(failure(new RealtimeError('untracked', text, { channel: state.name })));
    return new Promise((resolve) => {
      if (this.#state === 'open' && state.phase === 'joined') {
        const waiters = new Set();
        this.#waiter(waiters, resolve, state);
        const wanted = () => state.tracking === null && state.phase === 'joined';
        this.#insist({ op: 'untrack', channel: state.name }, wanted, (answer) => {
          // With the session, or the subscription, its presence has ended as well.
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

  /** Subscribing or sending is enough to connect. */
  #want() {
    if (this.#state === 'closed') this.#open();
  }

  #open() {
    clearTimeout(this.#retryTimer);
    if (this.#state === 'closed') {
      this.#failures = 0;
      this.#everOpen = false;
      this.#trouble = null;
      globalThis.addEventListener?.('online', this.#online);
    }
    this.#state = 'connecting';
    this.#leaveLink();
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
      if (attempt === this.#attempt) this.#retry(error); // else a callback has decided
      return;
    }
    if (attempt !== this.#attempt) return;
    const link = new Link(new Socket(this.#url), token, {
      ready: (session) => this.#ready(session),
      frame: (frame) => this.#frame(frame),
      report: (error) => this.#report(error, this.#channels.get(error.channel)),
      closed: (end) => { if (this.#link === link) this.#lost(end); },
    });
    this.#link = link;
  }

  /** Returns the token of this moment; raises when the application's function has none to give. */
  async #accessToken() {
    if (typeof this.#token !== 'function') return this.#token;
    try {
      return await new Promise((resolve, reject) => {
        const wait = this.#within(HANDSHAKE_MS, () => reject(new Error('it took too long.')));
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
    // Subscriptions first: what is published then is heard by them.
    this.#join([...this.#channels.values()].filter((state) => state.phase === 'waiting'));
    for (const entry of [...this.#outbox]) this.#publish(entry);
    for (const { resolve } of this.#connecting.splice(0)) resolve();
    this.#listeners.emit('connect', session);
  }

  #lost({ code, reason, refusal: refused }) {
    const wasOpen = this.#state === 'open';
    this.#link = null;
    this.#state = 'waiting';
    if (wasOpen && now() - this.#openAt > STABLE_MS) this.#failures = 0;
    this.#suspend(code);
    const attempt = this.#attempt;
    if (wasOpen) this.#listeners.emit('disconnect', { code, reason });
    if (this.#state !== 'waiting' || attempt !== this.#attempt) return; // a callback has decided already
    const final = code >= 3500 && code < 4000;
    const error = (final && refused) || new RealtimeError(final ? 'closed' : 'unreachable', final
      ? `The server closed the connection for good (${code}): ${reason || 'it gave no reason'}.`
      : `There is no connection to ${this.#options.baseUrl} (${code}${reason ? `: ${reason}` : ''}).`);
    // A function may have a better token the next time; a text stays what it is.
    const another = TOKEN_CODES.has(error.code) && typeof this.#token === 'function' && this.#everOpen;
    const told = wasOpen && error === refused; // it came as a frame of the open session
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
    this.#trouble = error;
    this.#state = 'waiting';
    this.#retryTimer = setTimeout(() => this.#open(), delay);
    this.#listeners.emit('reconnecting', { attempt: this.#failures, delay, reason: error.message });
  }

  /** Leaves what depended on the socket in a state from which a next one can go on. */
  #suspend(code) {
    for (const state of this.#channels.values()) {
      clearTimeout(state.timer);
      if (state.phase === 'joined') state.after = this.#cursor;
      if (state.phase !== 'idle') state.phase = 'waiting';
      state.turn += 1; // nothing of this socket is for it any more
      if (state.tracking) state.tracking.fresh = true;
    }
    this.#resuming.clear();
    this.#offered = null;
    const sent = [...this.#outbox].filter((entry) => entry.sent);
    for (const entry of sent) entry.sent = false;
    if (code === 1009 && sent.length > 0) {
      // The server tells not which frame was too big for it; sent again, it would end every socket.
      const largest = sent.reduce((one, other) => (other.text.length > one.text.length ? other : one));
      const text = 'The server closed the connection over the size of this message.';
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
    this.#leaveLink();
    const waiting = this.#connecting.splice(0);
    for (const { reject } of waiting) reject(error);
    for (const entry of [...this.#outbox]) this.#published(entry, entry.refused(error.code, error.message));
    for (const state of [...this.#channels.values()]) {
      for (const settle of [...(state.tracking?.waiters ?? [])]) settle(failure(error));
      for (const subscription of state.subscriptions) subscription.fail(error);
    }
    for (const { expire } of this.#waits) expire(); // of functions that owe a token
    this.#waits.clear();
    if (wasOpen) this.#listeners.emit('disconnect', { code: 1000, reason: error.message });
    // Who awaits connect() is told there.
    if (!quiet) this.#report(error, undefined, waiting.length > 0);
  }

  #leaveLink() {
    const link = this.#link;
    this.#link = null;
    link?.drop('', 1000);
    this.#suspend();
  }

  /** Sends the newest token on the open connection. */
  async #refresh() {
    const link = this.#link;
    const token = await this.#accessToken();
    if (!token || !link.ready) return; // nobody else to become, or the next connect sends it
    await new Promise((resolve, reject) => {
      link.ask({ op: 'auth', token }, (answer) => {
        if (answer === null || answer.op === 'ok') resolve();
        else reject(refusal(answer));
      });
    });
    if (link.ready) this.#join([...this.#channels.values()].filter((state) => state.phase === 'waiting'));
  }

  /** Refreshes because the server asks for it, once at a time on one connection. */
  #refreshOnce() {
    const link = this.#link;
    if (this.#refreshing === link || typeof this.#token !== 'function') return;
    this.#refreshing = link;
    this.#refresh()
      .catch((error) => { if (link.ready) this.#report(asError(error)); })
      .finally(() => { if (this.#refreshing === link) this.#refreshing = null; });
  }

  // ---- time and trouble -------------------------------------------------------------------------

  #within(milliseconds, expire) {
    const wait = { deadline: now() + milliseconds, expire };
    this.#waits.add(wait);
    return wait;
  }

  #startTicking() {
    const { timeout, connectTimeout } = this.#options;
    const period = Math.min(1_000, timeout / 4, connectTimeout / 4, (this.#link?.heartbeat ?? 1_000) / 2);
    // Quick attempts would start it anew each time, and it would never tick.
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
      this.#pump(state);
      if (state.phase === 'joining' && at - state.progressAt > this.#options.timeout) {
        this.#link?.drop(`The server did not answer the subscription of ${state.name} in time.`);
      }
    }
    this.#link?.check();
  }

  #callbackFailed(cause, kind, channel) {
    const text = `A callback of ${JSON.stringify(kind)} failed: ${cause?.message ?? cause}`;
    const error = new RealtimeError('callback_failed', text, { channel, cause });
    // One that fails while it hears of errors would hear of itself for ever.
    if (kind === 'error') console.error('rowcast:', error);
    else this.#report(error);
  }

  #report(error, state, told = false) {
    const heard = state?.listeners.emit('error', error);
    if (!this.#listeners.emit('error', error) && !heard && !told) console.error('rowcast:', error);
  }
}

/** Makes a client; `client.realtime` connects when it is told to, or when it is first needed. */
export function createClient(options = {}) {
  if (typeof options.baseUrl !== 'string') {
    throw new TypeError('createClient({ baseUrl }) needs the address of the server, like "https://example.com".');
  }
  const given = Object.entries(options).filter(([, value]) => value !== undefined && value !== null);
  return { realtime: new Realtime({ ...DEFAULTS, ...Object.fromEntries(given) }) };
}

export default createClient;
