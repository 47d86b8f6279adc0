/** The message as every door of the server writes it. */
export interface RealtimeMessage<Payload = any> {
  type: 'message' | 'broadcast';
  event: string;
  channel: string;
  payload: Payload;
  senderId?: string;
  /** ISO 8601, UTC. */
  timestamp: string;
  /** The key by which repeats are told; absent only on servers that send none. */
  id?: string;
}

/** How a message came: from the history asked for at subscribing, from a replay after a reconnect, or live (both false). */
export interface MessageMeta {
  history: boolean;
  replay: boolean;
}

export interface PresenceEvent<State = any> {
  type: 'join' | 'leave' | 'update';
  /** Who: stamped by the server. */
  key: string;
  /** The state that was given to `track()`; of a leave, the last one known. */
  presence: State;
}

export declare class RealtimeError extends Error {
  constructor(code: string, message: string, details?: { channel?: string; retryAfter?: number; id?: string; cause?: unknown });
  /** For programs: `forbidden`, `rate_limited`, `timeout`, `queue_full`, … */
  readonly code: string;
  readonly channel?: string;
  /** Seconds. */
  readonly retryAfter?: number;
  /** Of a publish: its idempotency key. */
  readonly id?: string;
  toJSON(): { code: string; message: string; channel?: string; retryAfter?: number; id?: string };
}

export type Result<Data> = { data: Data; error: null } | { data: null; error: RealtimeError };

export interface SendMessage {
  /** `message` (the default) is kept and replayed; `broadcast` is for those who listen now. */
  type?: 'message' | 'broadcast';
  event: string;
  payload?: unknown;
  /** The idempotency key, a UUID; one is made when it is left out. */
  id?: string;
}

export interface ChannelOptions {
  /** False: this client does not hear what it sends itself. Default true. */
  echo?: boolean;
  /** How many earlier messages to ask for when subscribing. Default 0. */
  history?: number;
}

/** After a reconnect the server could not replay all: load what is missing from the history. */
export interface ResyncEvent {
  channel: string;
  /** Every message of type `message` was replayed. */
  recovered: boolean;
  /** Every message of type `broadcast` was replayed. */
  ephemeral: boolean;
  reason?: string;
}

export interface ClosedEvent {
  channel: string;
  code: string;
  /** False: the client subscribes again by itself. */
  final: boolean;
}

export type MessageCallback<Payload = any> = (
  payload: Payload,
  message: RealtimeMessage<Payload>,
  meta: MessageMeta,
) => unknown;

export interface Subscription {
  readonly channel: Channel;
  /** Resolves when the server has confirmed, rejects when it has refused. It need not be awaited. */
  readonly ready: Promise<void>;
  readonly state: 'subscribing' | 'subscribed' | 'closed';
  unsubscribe(): void;
}

export interface Channel {
  readonly name: string;
  /** Every message of type `message`. */
  on<Payload = any>(kind: 'message', callback: MessageCallback<Payload>): Channel;
  /** Every message of whatever type and event. */
  on<Payload = any>(kind: '*', callback: MessageCallback<Payload>): Channel;
  on<State = any>(kind: 'presence', callback: (event: PresenceEvent<State>) => unknown): Channel;
  on(kind: 'error', callback: (error: RealtimeError) => unknown): Channel;
  on(kind: 'closed', callback: (event: ClosedEvent) => unknown): Channel;
  on(kind: 'deleted', callback: (event: { channel: string; id: string }) => unknown): Channel;
  on(kind: 'resync', callback: (event: ResyncEvent) => unknown): Channel;
  on(kind: 'subscribed', callback: (event: { channel: string; resumed: boolean }) => unknown): Channel;
  /** Every message whose event has this name. */
  on<Payload = any>(event: string, callback: MessageCallback<Payload>): Channel;
  off(kind: string, callback?: (...args: any[]) => unknown): Channel;
  subscribe(): Subscription;
  /** Ends every subscription of this channel, and the presence in it. */
  unsubscribe(): void;
  send(message: SendMessage): Promise<Result<{ id: string }>>;
  track(state: object): Promise<Result<object>>;
  untrack(): Promise<Result<object>>;
  /** The states of everyone present. */
  presenceState<State = any>(): State[];
}

export type AccessToken = string | (() => string | null | undefined | Promise<string | null | undefined>);

export interface Realtime {
  readonly state: 'closed' | 'connecting' | 'open' | 'waiting';
  /** Everything up to here was received. `createClient({ after })` goes on from it. */
  readonly cursor: string | undefined;
  connect(options?: { accessToken?: AccessToken }): Promise<void>;
  disconnect(): void;
  /** Changes whom the connection speaks for, without closing it. */
  setAuth(accessToken: AccessToken): Promise<void>;
  channel(name: string, options?: ChannelOptions): Channel;
  on(kind: 'connect', callback: (session: { session?: string; user: string | null; role?: string }) => unknown): Realtime;
  on(kind: 'disconnect', callback: (end: { code: number; reason: string }) => unknown): Realtime;
  on(kind: 'reconnecting', callback: (retry: { attempt: number; delay: number; reason: string }) => unknown): Realtime;
  on(kind: 'error', callback: (error: RealtimeError) => unknown): Realtime;
  on(kind: 'status', callback: (status: { status: string }) => unknown): Realtime;
  off(kind: string, callback?: (...args: any[]) => unknown): Realtime;
}

export interface ClientOptions {
  /** `http(s)://` address of the server. */
  baseUrl: string;
  /** The key of those who have no token. */
  anonKey?: string;
  /** Whom the client speaks for. A function is asked at every connect, and when a token is about to expire. */
  accessToken?: AccessToken;
  /** The class to use where the runtime has none, as `ws` exports it. */
  WebSocket?: new (url: string, ...rest: any[]) => any;
  /** A cursor of an earlier client: every channel's first subscription goes on from it. */
  after?: string;
  /** Milliseconds until an unanswered request is an error. Default 30,000. */
  timeout?: number;
  /** Milliseconds until connect() gives up. Default 20,000. */
  connectTimeout?: number;
  /** Milliseconds: bounds of the pause before a reconnect. Default 500 and 30,000. */
  minDelay?: number;
  maxDelay?: number;
  /** How many sends may wait for an answer. Default 5,000. */
  maxPending?: number;
}

export interface Client {
  readonly realtime: Realtime;
}

export declare function createClient(options: ClientOptions): Client;
export default createClient;
