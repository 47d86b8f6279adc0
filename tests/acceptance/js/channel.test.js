import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Queue, soon, startPeer } from './peer.js';

test('subscribing connects, and the frames of a channel have its options', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const subscription = client.realtime.channel('a', { echo: false }).subscribe();
  assert.equal(subscription.state, 'subscribing');
  const peer = await server.next();
  await peer.welcome();
  const request = await peer.hear('subscribe');
  assert.deepEqual({ ...request, ref: 0 }, { op: 'subscribe', self: false, channel: 'a', ref: 0 });
  peer.ok(request, { channel: 'a', cursor: 'c' });
  await soon(subscription.ready);
  assert.equal(subscription.state, 'subscribed');
});

test('channel(name) is one object per name while it is in use', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const channel = client.realtime.channel('a');
  channel.on('message', () => {});
  assert.equal(client.realtime.channel('a'), channel);
  assert.notEqual(client.realtime.channel('b'), channel);
  channel.subscribe();
  assert.throws(() => client.realtime.channel('a', { echo: false }), /another echo/);
});

test('two subscriptions of one name share one on the wire, which ends with the last', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, subscriptions, client } = await server.joined(['a']);
  const second = channels[0].subscribe();
  await soon(second.ready);
  subscriptions[0].unsubscribe();
  subscriptions[0].unsubscribe();
  await peer.settled(client);
  assert.equal(peer.unread, 0);
  second.unsubscribe();
  assert.equal((await peer.hear('unsubscribe')).channel, 'a');
  assert.equal(second.state, 'closed');
});

test('callbacks in the chain of subscribe() end with that subscription; others stay', async (t) => {
  const server = await startPeer(t);
  const { peer, client, heard } = await server.joined(['a']);
  const own = new Queue();
  const subscription = client.realtime.channel('a').on('message', (payload) => own.push(payload.id)).subscribe();
  peer.messages('a', ['m1']);
  assert.equal(await own.next(), 'm1');
  subscription.unsubscribe();
  peer.messages('a', ['m2']);
  assert.equal(await heard[0].next(), 'm1');
  assert.equal(await heard[0].next(), 'm2');
  assert.equal(own.length, 0);
});

test('callbacks of a channel that is subscribed twice stay until the last subscription ends', async (t) => {
  const server = await startPeer(t);
  const { peer, client } = await server.joined(['b']);
  const heard = new Queue();
  const channel = client.realtime.channel('a').on('message', ({ id }) => heard.push(id));
  const [first, second] = [channel.subscribe(), channel.subscribe()];
  peer.ok(await peer.hear('subscribe'), { channel: 'a', cursor: 'c1' });
  first.unsubscribe();
  first.unsubscribe();
  peer.messages('a', ['m1']);
  assert.equal(await heard.next(), 'm1');
  second.unsubscribe();
  assert.equal((await peer.hear('unsubscribe')).channel, 'a');
});

test('unsubscribe and untrack are repeated while the server is busy, unless the channel is wanted again', async (t) => {
  const server = await startPeer(t);
  const { peer, client, channels, subscriptions } = await server.joined(['a', 'b'], { timeout: 200 });
  const tracked = channels[0].track({ x: 1 });
  peer.ok(await peer.hear('track'));
  await soon(tracked);
  const untracked = channels[0].untrack();
  const busy = async (op) => peer.refuse(await peer.hear(op), 'rate_limited', { retryAfter: 0.01 });
  await busy('untrack');
  peer.ok(await peer.hear('untrack'));
  assert.equal((await soon(untracked)).error, null);
  subscriptions[0].unsubscribe();
  await busy('unsubscribe');
  await busy('unsubscribe');
  peer.ok(await peer.hear('unsubscribe'));
  subscriptions[1].unsubscribe();
  await busy('unsubscribe');
  const again = channels[1].subscribe();
  peer.ok(await peer.hear('subscribe'), { channel: 'b', cursor: 'c1' });
  await soon(again.ready);
  await new Promise((resolve) => { setTimeout(resolve, 150); }); // longer than the pause
  await peer.settled(client);
  assert.equal(peer.unread, 0);
});

test('an unsubscribed channel can be subscribed again at once, and an old answer does not confirm it', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  await peer.settled(client);
  const first = client.realtime.channel('a').subscribe();
  first.unsubscribe();
  const second = client.realtime.channel('a').subscribe();
  const requests = [await peer.hear('subscribe'), await peer.hear('unsubscribe'), await peer.hear('subscribe')];
  peer.ok(requests[0], { channel: 'a', cursor: 'c0' });
  peer.ok(requests[1], { channel: 'a' });
  await peer.settled(client);
  assert.equal(second.state, 'subscribing');
  await assert.rejects(first.ready, { code: 'unsubscribed' });
  peer.ok(requests[2], { channel: 'a', cursor: 'c1' });
  await soon(second.ready);
});

test('on("message") gets type message, on(event) that event, on("*") all, each with payload and message', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, client } = await server.joined(['a']);
  const seen = [];
  channels[0].on('message', (payload) => seen.push(['message', payload]));
  channels[0].on('moved', (payload, message) => seen.push(['moved', payload, message.type]));
  channels[0].on('*', (payload, message) => seen.push(['*', payload, message.event]));
  const base = { channel: 'a', timestamp: 't' };
  peer.say({
    op: 'messages',
    channel: 'a',
    messages: [
      { ...base, id: '1', type: 'message', event: 'said', payload: 1, senderId: 'alice' },
      { ...base, id: '2', type: 'broadcast', event: 'moved', payload: 2 },
    ],
  });
  await peer.settled(client);
  assert.deepEqual(seen, [['message', 1], ['*', 1, 'said'], ['moved', 2, 'broadcast'], ['*', 2, 'moved']]);
});

test('no event name reaches the callbacks of errors, closing or presence', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, client } = await server.joined(['a']);
  const seen = [];
  for (const kind of ['error', 'closed', 'deleted', 'presence', 'resync', 'subscribed', '*']) {
    channels[0].on(kind, () => seen.push(kind));
  }
  const messages = ['error', 'closed', 'deleted', 'presence', 'resync', 'subscribed', '*'].map((event) => (
    { id: event, type: 'broadcast', event, channel: 'a', payload: null, timestamp: 't' }));
  peer.say({ op: 'messages', channel: 'a', messages });
  await peer.settled(client);
  assert.deepEqual(seen, Array(7).fill('*'));
});

test('a refused subscription is an error event of channel and client, and rejects ready', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const errors = new Queue();
  const unhandled = [];
  const listen = (reason) => unhandled.push(reason);
  process.on('unhandledRejection', listen);
  t.after(() => process.off('unhandledRejection', listen));
  const subscription = client.realtime.channel('a').on('error', (error) => errors.push(error)).subscribe();
  const peer = await server.next();
  await peer.welcome();
  peer.refuse(await peer.hear('subscribe'), 'forbidden', { channel: 'a' });
  for (const error of [await errors.next(), await client.errors.next()]) {
    assert.deepEqual([error.code, error.channel, error.message], ['forbidden', 'a', 'refused: forbidden']);
  }
  await peer.settled(client);
  await new Promise(setImmediate);
  assert.deepEqual(unhandled, []);
  await assert.rejects(subscription.ready, { code: 'forbidden', channel: 'a' });
  assert.equal(subscription.state, 'closed');
});

test('a subscription that is temporarily unavailable is requested again until it is confirmed', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const subscription = client.realtime.channel('a').subscribe();
  const peer = await server.next();
  await peer.welcome();
  for (let n = 0; n < 3; n += 1) peer.refuse(await peer.hear('subscribe'), 'unavailable', { channel: 'a', retryAfter: 0.01 });
  peer.ok(await peer.hear('subscribe'), { channel: 'a', cursor: 'c' });
  await soon(subscription.ready);
  assert.equal(client.errors.length, 1);
});

test('a first subscription that stays unavailable is given up', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const subscription = client.realtime.channel('a').subscribe();
  const peer = await server.next();
  await peer.welcome();
  for (let n = 0; n < 6; n += 1) peer.refuse(await peer.hear('subscribe'), 'unavailable', { channel: 'a', retryAfter: 0.001 });
  await assert.rejects(soon(subscription.ready), { code: 'unavailable' });
});

test('a final close by the server is an event, and the channel is not resumed', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, subscriptions } = await server.joined(['a']);
  const events = new Queue();
  channels[0].on('closed', (event) => events.push(event));
  peer.say({ op: 'closed', channel: 'a', code: 'revoked' });
  assert.deepEqual(await events.next(), { channel: 'a', code: 'revoked', final: true });
  assert.equal(subscriptions[0].state, 'closed');
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  channels[0].subscribe();
  assert.equal((await next.hear('subscribe')).after, undefined);
});

test('access lost during a reconnect closes the channel', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const events = new Queue();
  channels[0].on('closed', (event) => events.push(event));
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  next.refuse(await next.hear('subscribe'), 'forbidden', { channel: 'a' });
  assert.deepEqual(await events.next(), { channel: 'a', code: 'forbidden', final: true });
});

test('channels closed with an expired token are resumed after its refresh', async (t) => {
  const server = await startPeer(t);
  const { peer, subscriptions } = await server.joined(['a'], { accessToken: () => 'fresh' });
  peer.say({ op: 'closed', channel: 'a', code: 'expired' });
  peer.ok(await peer.hear('auth'), { user: 'alice' });
  const request = await peer.hear('subscribe');
  assert.equal(request.after, 'c0');
  peer.ok(request, { channel: 'a', cursor: 'c1', recovered: true });
  assert.notEqual(subscriptions[0].state, 'closed');
});

test('a deleted message is an event', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const events = new Queue();
  channels[0].on('deleted', (event) => events.push(event));
  peer.say({ op: 'deleted', channel: 'a', id: 'm1' });
  assert.deepEqual(await events.next(), { channel: 'a', id: 'm1' });
});

test('a callback that fails, at once or later, is reported and does not stop others', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, client, heard } = await server.joined(['a']);
  channels[0].on('*', () => { throw new Error('first'); });
  channels[0].on('*', async () => { throw new Error('second'); });
  const last = new Queue();
  channels[0].on('*', (payload) => last.push(payload.id));
  peer.messages('a', ['m1', 'm2']);
  assert.equal(await last.next(), 'm1');
  assert.equal(await last.next(), 'm2');
  assert.equal(await heard[0].next(), 'm1');
  const errors = [];
  for (let n = 0; n < 4; n += 1) errors.push(await client.errors.next());
  assert.ok(errors.every((error) => error.code === 'callback_failed' && error.channel === 'a'));
  assert.deepEqual(errors.map((error) => error.cause.message).sort(), ['first', 'first', 'second', 'second']);
});

test('a callback may unsubscribe while a batch is being delivered', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, client, heard, subscriptions } = await server.joined(['a']);
  channels[0].on('*', () => subscriptions[0].unsubscribe());
  peer.messages('a', ['m1', 'm2']);
  await peer.hear('unsubscribe');
  await peer.settled(client);
  assert.equal(heard[0].length, 1);
});

test('hostile frames are reported and do not end the client', async (t) => {
  const server = await startPeer(t);
  const { peer, client, heard } = await server.joined(['a']);
  const hostile = [
    'no json', '[]', 'null', '{}', '{"op":7}', '"op"', '{"op":"messages"}', '{"op":"messages","channel":"a"}',
    '{"op":"messages","channel":"a","messages":[null,1,"x",[]]}', '{"op":"messages","channel":{},"messages":[]}',
    '{"op":"ok"}', '{"op":"ok","ref":{}}', '{"op":"error"}', '{"op":"error","ref":null,"code":5,"message":{}}',
    '{"op":"presence","channel":"a","events":[null,{"key":1},{"type":"join","key":"k"}]}',
    '{"op":"closed","channel":"__proto__","code":"x"}', '{"op":"cursor","cursor":{"a":1}}', '{"op":"unheard of"}',
    '{"op":"deleted"}', '{"op":"status"}', `{"op":"messages","channel":"a","messages":${'['.repeat(50000)}${']'.repeat(50000)}}`,
    '{"op":"messages","channel":"a","messages":[{"id":"x","type":"message","event":"__proto__","payload":{"__proto__":{"hit":1}}}]}',
  ];
  for (const frame of hostile) peer.say(frame);
  peer.socket.send(Buffer.from([1, 2, 3]));
  peer.messages('a', ['m1']);
  assert.equal(await heard[0].next(), undefined); // the message with the unusual event
  assert.equal(await heard[0].next(), 'm1');
  assert.equal(client.realtime.state, 'open');
  assert.equal({}.hit, undefined);
  assert.ok(client.errors.length > 5);
});

test('send() answers with data or error and never throws for a refusal', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const sent = channels[0].send({ event: 'e', payload: { a: 1 } });
  const frame = await peer.hear('publish');
  assert.deepEqual([frame.channel, frame.type, frame.event, frame.payload], ['a', 'message', 'e', { a: 1 }]);
  peer.refuse(frame, 'rate_limited', { retryAfter: 2 });
  const { data, error } = await soon(sent);
  assert.equal(data, null);
  assert.deepEqual([error.code, error.channel, error.retryAfter, error.id], ['rate_limited', 'a', 2, frame.id]);
  assert.deepEqual(JSON.parse(JSON.stringify(error)).message, 'refused: rate_limited');
});

test('send() refuses invalid and oversized messages', async (t) => {
  const server = await startPeer(t);
  const { channels } = await server.joined(['a'], {}, { limits: { frame: 1000 } });
  const cycle = {};
  cycle.self = cycle;
  const code = async (message) => (await soon(channels[0].send(message))).error?.code;
  assert.equal(await code({ event: 'e', payload: cycle }), 'invalid_message');
  assert.equal(await code({ event: 'e', payload: 1n }), 'invalid_message');
  assert.equal(await code({ event: 'e', payload: () => {} }), 'invalid_message');
  assert.equal(await code({ payload: 1 }), 'invalid_message');
  assert.equal(await code(undefined), 'invalid_message');
  assert.equal(await code({ event: 'e', payload: 'é'.repeat(500) }), 'payload_too_large');
});

test('send() copies the payload', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const payload = { n: 1 };
  client.realtime.channel('a').send({ event: 'e', payload });
  payload.n = 2;
  const peer = await server.next();
  await peer.welcome();
  assert.deepEqual((await peer.hear('publish')).payload, { n: 1 });
});

test('the queue of unanswered sends is bounded', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ maxPending: 2 });
  const channel = client.realtime.channel('a');
  channel.send({ event: 'e' });
  channel.send({ event: 'e' });
  const { error } = await soon(channel.send({ event: 'e' }));
  assert.equal(error.code, 'queue_full');
});

test('a send without an answer in time is an error with its id', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a'], { timeout: 100 });
  const sent = channels[0].send({ event: 'e' });
  const { id } = await peer.hear('publish');
  const { error } = await soon(sent);
  assert.deepEqual([error.code, error.id], ['timeout', id]);
  assert.match(error.message, /may be stored/);
});

test('a subscription without an answer in time ends the connection and is requested again', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ timeout: 100 });
  client.realtime.channel('a').subscribe();
  const peer = await server.next();
  await peer.welcome();
  await peer.hear('subscribe');
  const next = await server.next();
  await next.welcome();
  assert.equal((await next.hear('subscribe')).channel, 'a');
});

test('at most a window of requests is unanswered at a time', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  for (let n = 0; n < 130; n += 1) client.realtime.channel(`c:${n}`).subscribe();
  const sent = client.realtime.channel('c:0').send({ event: 'e' });
  const peer = await server.next();
  await peer.welcome();
  const names = [];
  while (names.length < 130) {
    const request = await peer.hear('subscribe');
    assert.ok(request.channels.length <= 50);
    if (request.channels.length === 50) assert.equal(peer.unread, 0);
    for (const channel of request.channels) {
      names.push(channel);
      peer.ok(request, { channel, cursor: 'c' });
    }
  }
  peer.ok(await peer.hear('publish'), { id: 'm' });
  assert.equal((await soon(sent)).error, null);
});

test('a subscription ended before its answer gives its place in the window back', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  await peer.settled(client);
  for (let n = 0; n < 200; n += 1) {
    client.realtime.channel('a').subscribe().unsubscribe();
    await peer.hear('subscribe'); // without an answer
    peer.ok(await peer.hear('unsubscribe'), { channel: 'a' });
    await new Promise(setImmediate);
  }
  assert.equal(client.realtime.state, 'open');
});
