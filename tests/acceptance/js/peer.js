/** A scripted server of the native wire, for which the test writes every frame, and a client of it. */
import { once } from 'node:events';
import { WebSocket, WebSocketServer } from 'ws';

const { createClient } = await import(process.env.ROWCAST_CLIENT);

const DEADLINE_MS = 10_000;

/** Awaits with a deadline, so that a test fails instead of hanging. */
export async function soon(promise, what = 'it') {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not happen in time`)), DEADLINE_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A queue of values, in the order of arrival. */
export class Queue {
  #values = [];
  #waiting = [];

  get length() {
    return this.#values.length;
  }

  push(value) {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(value);
    else this.#values.push(value);
  }

  next(what) {
    if (this.#values.length > 0) return Promise.resolve(this.#values.shift());
    return soon(new Promise((resolve) => { this.#waiting.push(resolve); }), what);
  }
}

/** One connection, seen from the server. */
class Conversation {
  #frames = new Queue();

  constructor(socket, url) {
    this.socket = socket;
    this.url = url;
    this.closed = once(socket, 'close').then(([code]) => code);
    socket.on('message', (data) => this.#frames.push(JSON.parse(data)));
  }

  get unread() {
    return this.#frames.length;
  }

  say(frame) {
    this.socket.send(typeof frame === 'string' ? frame : JSON.stringify(frame));
  }

  async hear(op) {
    const frame = await this.#frames.next(`a frame ${op}`);
    if (frame.op !== op) throw new Error(`expected ${op}, got ${JSON.stringify(frame)}`);
    return frame;
  }

  ok(request, more = {}) {
    this.say({ op: 'ok', ref: request.ref, ...more });
  }

  refuse(request, code, more = {}) {
    this.say({ op: 'error', ref: request?.ref ?? null, code, message: `refused: ${code}`, ...more });
  }

  /** Sends live messages with these ids. */
  messages(channel, ids, more = {}) {
    const messages = ids.map((id) => ({
      id, type: 'message', event: 'said', channel, payload: { id }, timestamp: '2026-01-01T00:00:00Z',
    }));
    this.say({ op: 'messages', channel, messages, ...more });
  }

  /** Sends the welcome and accepts the first frame of the client, whatever its token. */
  async welcome(more = {}) {
    this.say({ op: 'welcome', session: 's', heartbeat: 25, replayOverlap: 10, limits: {}, ...more });
    const frame = await this.#frames.next('the handshake');
    this.ok(frame, frame.op === 'auth' ? { user: 'alice', role: 'authenticated' } : {});
    return frame;
  }

  /** Resolves once the client has handled all earlier frames. */
  async settled(client) {
    const heard = new Promise((resolve) => { client.realtime.on('status', resolve); });
    this.say({ op: 'status', status: 'ok' });
    await soon(heard, 'the client reading on');
  }
}

export async function startPeer(test) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  const conversations = new Queue();
  server.on('connection', (socket, request) => conversations.push(new Conversation(socket, request.url)));
  await once(server, 'listening');
  const clients = [];
  test.after(() => {
    for (const client of clients) client.realtime.disconnect();
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  const baseUrl = `http://127.0.0.1:${server.address().port}`;
  return {
    baseUrl,
    server,
    next: () => conversations.next('a connection'),
    client(options = {}) {
      const client = createClient({ baseUrl, anonKey: 'anon', WebSocket, minDelay: 1, maxDelay: 20, ...options });
      const errors = new Queue();
      client.realtime.on('error', (error) => errors.push(error));
      clients.push(client);
      return Object.assign(client, { errors });
    },
    /** Connects a client with one joined channel for each name; returns it with the server's side. */
    async joined(names, options = {}, welcome = {}) {
      const client = this.client(options);
      const channels = names.map((name) => client.realtime.channel(name));
      const heard = channels.map((channel) => {
        const ids = new Queue();
        channel.on('message', (payload) => ids.push(payload.id));
        return ids;
      });
      const subscriptions = channels.map((channel) => channel.subscribe());
      const peer = await conversations.next('a connection');
      await peer.welcome(welcome);
      const request = await peer.hear('subscribe');
      for (const name of names) peer.ok(request, { channel: name, cursor: 'c0' });
      await soon(Promise.all(subscriptions.map((subscription) => subscription.ready)), 'the subscriptions');
      return { client, channels, heard, subscriptions, peer };
    },
  };
}
