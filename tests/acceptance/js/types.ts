// Compiled, not run: the promises of the types to TypeScript code.
import { WebSocket } from 'ws';
import { createClient, RealtimeError } from 'rowcast-client';
import type { Channel, PresenceEvent, RealtimeMessage, Result, Subscription } from 'rowcast-client';

interface Said { text: string }

const client = createClient({
  baseUrl: 'http://127.0.0.1', anonKey: 'key', WebSocket, accessToken: async () => 'token', after: undefined,
});
const connected: Promise<void> = client.realtime.connect({ accessToken: 'token' });
client.realtime.on('connect', ({ user }) => user?.length).on('error', (error) => error.code.length);
const channel: Channel = client.realtime.channel('chat:room1', { echo: false, history: 10 });
const subscription: Subscription = channel
  .on<Said>('message', (payload, message, meta) => [payload.text, message.senderId, meta.replay])
  .on<Said>('message.new', (payload) => payload.text)
  .on('presence', (event: PresenceEvent) => event.presence)
  .on('resync', ({ recovered, reason }) => [recovered, reason])
  .on('closed', ({ code, final }) => [code, final])
  .on('deleted', ({ id }) => id)
  .subscribe();
subscription.ready.then(() => subscription.unsubscribe());

const sent: Result<{ id: string }> = await channel.send({ type: 'broadcast', event: 'e', payload: [1] });
if (sent.error) throw sent.error;
else sent.data.id.length;

// The interface on the page accepts every message of the client.
interface PageMessage {
  type: 'message' | 'broadcast';
  event: string;
  channel: string;
  payload: any;
  senderId?: string;
  timestamp: string;
}
const page: (message: RealtimeMessage) => PageMessage = (message) => message;

// @ts-expect-error a type that does not exist
channel.send({ type: 'other', event: 'e' });
// @ts-expect-error no event
channel.send({ payload: 1 });
// @ts-expect-error no address
createClient({});
const error: Error = new RealtimeError('code', 'message');

export { connected, error, page };
