import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Queue, soon, startPeer } from './peer.js';

const drain = async (queue, count) => {
  const values = [];
  for (let at = 0; at < count; at += 1) values.push(await queue.next(`message ${at}`));
  return values;
};

test('a reconnected client resumes all channels from the newest cursor in one frame', async (t) => {
  const server = await startPeer(t);
  const { peer, client } = await server.joined(['a', 'b']);
  peer.say({ op: 'cursor', cursor: 'c1' });
  peer.say({ op: 'cursor', cursor: 'c2' });
  await peer.settled(client);
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  const request = await next.hear('subscribe');
  assert.deepEqual(request.channels, ['a', 'b']);
  assert.equal(request.after, 'c2');
});

test('a replay adds messages in order, and repeats none', async (t) => {
  const server = await startPeer(t);
  const { peer, heard } = await server.joined(['a']);
  peer.messages('a', ['m1', 'm2']);
  assert.deepEqual(await drain(heard[0], 2), ['m1', 'm2']);
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  const request = await next.hear('subscribe');
  assert.equal(request.after, 'c0');
  next.messages('a', ['m1', 'm2', 'm3'], { replay: true });
  next.ok(request, { channel: 'a', cursor: 'c1', recovered: true, ephemeral: true });
  next.messages('a', ['m4']);
  assert.deepEqual(await drain(heard[0], 2), ['m3', 'm4']);
});

test('the same id in two channels is two messages', async (t) => {
  const server = await startPeer(t);
  const { peer, heard } = await server.joined(['order:1', 'order:*']);
  peer.messages('order:1', ['m1']);
  peer.messages('order:*', ['m1']);
  assert.equal(await heard[0].next(), 'm1');
  assert.equal(await heard[1].next(), 'm1');
});

test('while channels are being resumed a new cursor does not replace the old one', async (t) => {
  const server = await startPeer(t);
  const { peer, client } = await server.joined(['a', 'b']);
  peer.socket.terminate();
  const second = await server.next();
  await second.welcome();
  const request = await second.hear('subscribe');
  second.ok(request, { channel: 'a', cursor: 'c1', recovered: true });
  second.say({ op: 'cursor', cursor: 'c2' });
  await second.settled(client);
  assert.equal(client.realtime.cursor, 'c0');
  second.socket.terminate(); // before b was answered
  const third = await server.next();
  await third.welcome();
  const again = await third.hear('subscribe');
  assert.equal(again.after, 'c0');
  assert.deepEqual(again.channels, ['a', 'b']);
});

test('the newest cursor is adopted once the last channel is resumed', async (t) => {
  const server = await startPeer(t);
  const { peer, client } = await server.joined(['a', 'b']);
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  const request = await next.hear('subscribe');
  next.ok(request, { channel: 'a', cursor: 'c1', recovered: true });
  next.refuse(request, 'forbidden', { channel: 'b' });
  await next.settled(client);
  assert.equal(client.realtime.cursor, 'c1');
});

test('a channel that is not resumed yet keeps its cursor; that of the others advances', async (t) => {
  const server = await startPeer(t);
  const { peer, client, heard } = await server.joined(['a', 'b']);
  peer.messages('b', ['m1']);
  await heard[1].next();
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome({ replayOverlap: 0 });
  const request = await next.hear('subscribe');
  next.ok(request, { channel: 'a', cursor: 'c1', recovered: true });
  next.refuse(request, 'unavailable', { channel: 'b', retryAfter: 0.01 });
  next.say({ op: 'cursor', cursor: 'c2' });
  const again = await next.hear('subscribe');
  assert.equal(again.channel, 'b');
  assert.equal(again.after, 'c0');
  next.messages('b', ['m1', 'm2'], { replay: true });
  next.ok(again, { channel: 'b', cursor: 'c3', recovered: true });
  assert.equal(await heard[1].next(), 'm2');
  await next.settled(client);
  assert.equal(client.realtime.cursor, 'c3');
});

test('ids within replayOverlap are kept although a cursor covers them', async (t) => {
  const server = await startPeer(t);
  const { peer, client, heard } = await server.joined(['a'], {}, { replayOverlap: 60 });
  peer.messages('a', ['m1']);
  peer.say({ op: 'cursor', cursor: 'c1' });
  peer.messages('a', ['m1', 'm2']);
  assert.deepEqual(await drain(heard[0], 2), ['m1', 'm2']);
  await peer.settled(client);
  assert.equal(heard[0].length, 0);
});

test('older ids that a cursor covers are forgotten', async (t) => {
  const server = await startPeer(t);
  const { peer, heard } = await server.joined(['a'], {}, { replayOverlap: 0 });
  peer.messages('a', ['m1']);
  assert.equal(await heard[0].next(), 'm1');
  peer.say({ op: 'cursor', cursor: 'c1' });
  peer.messages('a', ['m1']); // no server does this; it shows that the id was forgotten
  assert.equal(await heard[0].next(), 'm1');
});

test('replayOverlap may be among the limits', async (t) => {
  const server = await startPeer(t);
  const { peer, heard } = await server.joined(['a'], {}, { replayOverlap: undefined, limits: { replayOverlap: 0 } });
  peer.messages('a', ['m1']);
  await heard[0].next();
  peer.say({ op: 'cursor', cursor: 'c1' });
  peer.messages('a', ['m1']);
  assert.equal(await heard[0].next(), 'm1');
});

test('a history does not repeat earlier messages, although a cursor covers them', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const heard = new Queue();
  const metas = [];
  client.realtime.channel('a', { history: 2 })
    .on('message', (payload, message, meta) => { heard.push(payload.id); metas.push(meta); }).subscribe();
  const peer = await server.next();
  await peer.welcome({ replayOverlap: 0 });
  const request = await peer.hear('subscribe');
  assert.equal(request.history, 2);
  peer.messages('a', ['m1', 'm2'], { history: true });
  peer.ok(request, { channel: 'a', cursor: 'c1' });
  await drain(heard, 2);
  assert.deepEqual(metas[0], { history: true, replay: false });
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome({ replayOverlap: 0 });
  const again = await next.hear('subscribe');
  next.messages('a', ['m2', 'm3'], { history: true });
  next.ok(again, { channel: 'a', cursor: 'c2', recovered: false, reason: 'too_far' });
  assert.equal(await heard.next(), 'm3');
});

test('an incomplete replay is a resync event', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const events = new Queue();
  channels[0].on('resync', (event) => events.push(event));
  channels[0].on('subscribed', (event) => events.push(event));
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  const request = await next.hear('subscribe');
  next.ok(request, { channel: 'a', cursor: 'c9', recovered: false, ephemeral: false, reason: 'too_far' });
  assert.deepEqual(await events.next(), { channel: 'a', resumed: true });
  assert.deepEqual(await events.next(), { channel: 'a', recovered: false, ephemeral: false, reason: 'too_far' });
});

test('lost broadcasts alone are a resync event; a complete resume is not', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a', 'b']);
  const events = new Queue();
  for (const channel of channels) channel.on('resync', (event) => events.push(event));
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  const request = await next.hear('subscribe');
  next.ok(request, { channel: 'a', cursor: 'c1', recovered: true, ephemeral: true });
  next.ok(request, { channel: 'b', cursor: 'c1', recovered: true, ephemeral: false });
  const event = await events.next();
  assert.equal(event.channel, 'b');
  assert.equal(event.recovered, true);
  assert.equal(events.length, 0);
});

test('createClient({ after }) resumes an earlier process', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ after: 'stored' });
  client.realtime.channel('a').subscribe();
  const peer = await server.next();
  await peer.welcome();
  const request = await peer.hear('subscribe');
  assert.equal(request.after, 'stored');
  peer.ok(request, { channel: 'a', cursor: 'c1', recovered: true });
  await peer.settled(client);
  client.realtime.channel('b').subscribe();
  assert.equal((await peer.hear('subscribe')).after, 'stored');
  // The messages since then were received, so a channel that is subscribed again does not resume.
  client.realtime.channel('a').unsubscribe();
  peer.ok(await peer.hear('unsubscribe'));
  client.realtime.channel('a').subscribe();
  assert.equal((await peer.hear('subscribe')).after, undefined);
});

test('a publish whose answer was lost is sent again with the same id', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const sent = channels[0].send({ event: 'e', payload: { n: 1 } });
  const first = await peer.hear('publish');
  assert.match(first.id, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  next.ok(await next.hear('subscribe'), { channel: 'a', cursor: 'c1', recovered: true }); // before the publish
  const second = await next.hear('publish');
  assert.equal(second.id, first.id);
  assert.deepEqual(second.payload, { n: 1 });
  next.ok(second, { id: 'm1' });
  assert.deepEqual(await soon(sent), { data: { id: 'm1' }, error: null });
});

test('publishes keep their order over a reconnect', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const sends = [0, 1, 2].map((n) => channels[0].send({ event: 'e', payload: n }));
  peer.ok(await peer.hear('publish'), { id: 'm0' });
  await soon(sends[0]);
  peer.socket.terminate();
  sends.push(channels[0].send({ event: 'e', payload: 3 }));
  const next = await server.next();
  await next.welcome();
  await next.hear('subscribe');
  assert.deepEqual([await next.hear('publish'), await next.hear('publish'), await next.hear('publish')].map((f) => f.payload), [1, 2, 3]);
});

test('a message that is too big for the server is not sent again', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const small = channels[0].send({ event: 'e', payload: 's' });
  const large = channels[0].send({ event: 'e', payload: 'l'.repeat(1000) });
  await peer.hear('publish');
  await peer.hear('publish');
  peer.socket.close(1009, 'too big');
  assert.equal((await soon(large)).error.code, 'payload_too_large');
  const next = await server.next();
  await next.welcome();
  await next.hear('subscribe');
  next.ok(await next.hear('publish'), { id: 'm1' });
  assert.equal((await soon(small)).data.id, 'm1');
});

for (const code of ['lagging', 'unavailable']) {
  test(`a channel closed as ${code} is resumed from the cursor of that moment`, async (t) => {
    const server = await startPeer(t);
    const { peer, channels, heard } = await server.joined(['a']);
    const events = new Queue();
    channels[0].on('closed', (event) => events.push(event));
    peer.messages('a', ['m1']);
    await heard[0].next();
    peer.say({ op: 'closed', channel: 'a', code });
    peer.say({ op: 'cursor', cursor: 'c1' }); // does not cover a channel that is not joined
    assert.deepEqual(await events.next(), { channel: 'a', code, final: false });
    const request = await peer.hear('subscribe');
    assert.equal(request.after, 'c0');
    peer.messages('a', ['m1', 'm2'], { replay: true });
    peer.ok(request, { channel: 'a', cursor: 'c2', recovered: true });
    assert.equal(await heard[0].next(), 'm2');
  });
}

test('a drained client waits as long as the server asks', async (t) => {
  const server = await startPeer(t);
  const { peer, client } = await server.joined(['a']);
  const told = new Queue();
  client.realtime.on('reconnecting', ({ delay }) => told.push(delay));
  peer.say({ op: 'status', status: 'draining', retryAfter: 0.123 });
  peer.socket.close(3000);
  assert.equal(await told.next(), 123);
  const next = await server.next();
  await next.welcome();
  assert.equal((await next.hear('subscribe')).after, 'c0');
  next.socket.terminate();
  assert.notEqual(await told.next(), 123); // the pause was for that connection only
});
