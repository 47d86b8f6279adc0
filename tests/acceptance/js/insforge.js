// Unmodified clients of InsForge, and socket.io-client, against the real bridge: run once for each
// version of the SDK.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { io } from 'socket.io-client';
import { Queue, soon } from './peer.js';

const { ROWCAST_URL: url, PACKAGE, ANON, ALICE, BOB, ADMIN, EXPIRED } = process.env;
const { createClient, createAdminClient } = await import(PACKAGE);
const newest = PACKAGE === '@insforge/sdk';
let rooms = 0;

function room(kind = 'room') {
  return `${kind}:${PACKAGE.replace(/\W/g, '')}-${(rooms += 1)}`;
}

function client(t, token, options = {}) {
  const made = createClient({ baseUrl: url, anonKey: ANON, edgeFunctionToken: token, ...options });
  t.after(() => made.realtime.disconnect());
  return made.realtime;
}

function heard(realtime, event) {
  const queue = new Queue();
  realtime.on(event, (message) => queue.push(message));
  return queue;
}

async function subscribed(realtime, channel) {
  const answer = await soon(realtime.subscribe(channel), 'subscribe');
  assert.equal(answer.ok, true, JSON.stringify(answer));
  assert.equal(answer.channel, channel);
  return answer.presence.members;
}

test('all subscribers receive a message, including its publisher', async (t) => {
  const name = room();
  const [alice, anonymous] = [client(t, ALICE), client(t)];
  await soon(alice.connect());
  await soon(anonymous.connect());
  await subscribed(alice, name);
  await subscribed(anonymous, name);
  const queues = [heard(alice, 'message.new'), heard(anonymous, 'message.new')];
  const payload = { text: 'häy 💥', deep: [1, { a: null }], huge: 1.5e300, meta: 'mine', empty: {} };
  await alice.publish(name, 'message.new', payload);
  for (const queue of queues) {
    const { meta, ...rest } = await queue.next('a message');
    assert.deepEqual({ ...rest, meta: 'mine' }, payload);
    assert.equal(meta.channel, `realtime:${name}`);
    assert.match(meta.messageId, /^[0-9a-f-]{36}$/);
    assert.match(meta.timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
    assert.deepEqual([meta.senderType, meta.senderId], ['user', 'alice']);
  }
  await anonymous.publish(name, 'message.new', {});
  const { meta } = await queues[0].next('a message');
  assert.equal(meta.senderType, 'user');
  assert.equal('senderId' in meta, false);
});

test('a payload that is not an object is delivered as well', async (t) => {
  const name = room();
  const alice = client(t, ALICE);
  await subscribed(alice, name);
  const queue = heard(alice, 'e');
  for (const payload of [['a', [1]], 'text', 5, null]) await alice.publish(name, 'e', payload);
  const seen = [];
  for (let n = 0; n < 4; n += 1) {
    const { meta, ...rest } = await queue.next('a message');
    seen.push(rest);
  }
  assert.deepEqual(seen, [{ 0: 'a', 1: [1] }, { payload: 'text' }, { payload: 5 }, { payload: null }]);
});

test('a refused subscribe says so, and so does a refused publish', async (t) => {
  const anonymous = client(t);
  await soon(anonymous.connect());
  const name = room('members');
  assert.deepEqual(await soon(anonymous.subscribe(name)), {
    ok: false,
    channel: name,
    error: { code: 'REALTIME_UNAUTHORIZED', message: 'Not authorized to subscribe to this channel' },
  });
  const errors = heard(anonymous, 'error');
  const [readonly, other] = [room('readonly'), room()];
  await subscribed(anonymous, readonly);
  await anonymous.publish(readonly, 'e', {});
  assert.deepEqual(await errors.next('an error'), {
    channel: readonly,
    code: 'REALTIME_UNAUTHORIZED',
    message: 'Not authorized to publish to this channel',
  });
  await anonymous.publish(other, 'e', {});
  assert.deepEqual(await errors.next('an error'), {
    channel: other,
    code: 'REALTIME_NOT_SUBSCRIBED',
    message: 'Must subscribe to channel before publishing messages',
  });
});

test('bad credentials are said to be bad', async (t) => {
  for (const [token, says] of [[EXPIRED, /expired/], ['ik_key', /API key/], ['a.b.c', /not a JSON Web Token/]]) {
    const realtime = client(t, token);
    await assert.rejects(soon(realtime.connect()), says);
  }
});

test('a subscriber is present until it leaves', async (t) => {
  const name = room();
  const [alice, bob, anonymous] = [client(t, ALICE), client(t, BOB), client(t)];
  const [mine] = [await subscribed(alice, name)];
  if (newest) assert.deepEqual(mine.map((m) => [m.type, m.presenceId]), [['user', 'alice']]);
  const [joins, leaves] = [heard(alice, 'presence:join'), heard(alice, 'presence:leave')];
  const told = heard(bob, 'presence:join');
  const members = await subscribed(bob, name);
  const join = await joins.next('a join');
  assert.deepEqual([join.member.type, join.member.presenceId], ['user', 'bob']);
  assert.equal(join.meta.channel, name);
  assert.equal(join.meta.senderType, 'system');
  assert.match(join.member.joinedAt, /Z$/);
  // In the list or, where she had come just before, in what follows it.
  const known = members.find((member) => member.presenceId === 'alice')
    ?? (await told.next('a join')).member;
  assert.equal(known.joinedAt, mine[0].joinedAt);
  await subscribed(anonymous, name);
  const third = await joins.next('a join');
  assert.deepEqual(
    [third.member.type, third.member.presenceId],
    ['anonymous', anonymous.socketId],
  );
  if (newest) {
    const ids = alice.getPresenceState(name).map((member) => member.presenceId);
    assert.deepEqual(ids.sort(), ['alice', 'bob', anonymous.socketId].sort());
  }
  bob.unsubscribe(name);
  assert.equal((await leaves.next('a leave')).member.presenceId, 'bob');
  anonymous.disconnect();
  assert.equal((await leaves.next('a leave')).member.presenceId, anonymous.socketId ?? third.member.presenceId);
  assert.equal(joins.length, 0, 'a member is not told of its own join');
});

test('an administrator hears everything and speaks as the system', async (t) => {
  const name = room('members');
  const admin = newest
    ? createAdminClient({ baseUrl: url, apiKey: ADMIN }).realtime
    : client(t, ADMIN);
  t.after(() => admin.disconnect());
  await soon(admin.connect());
  await subscribed(admin, name);
  const alice = client(t, ALICE);
  await subscribed(alice, name);
  const queue = heard(alice, 'e');
  await admin.publish(name, 'e', { a: 1 });
  const { a, meta } = await queue.next('a message');
  assert.deepEqual([a, meta.senderType, 'senderId' in meta], [1, 'system', false]);
  const hears = heard(admin, 'f');
  await alice.publish(name, 'f', {});
  await hears.next('a message');
});

test('no message speaks as the server, or as the library', async (t) => {
  const name = room();
  const alice = client(t, ALICE);
  await subscribed(alice, name);
  const others = heard(alice, 'realtime:message');
  const spoken = new Queue();
  const reserved = [
    'connect', 'connect_error', 'disconnect', 'disconnecting', 'error', 'realtime:error',
    'realtime:message', 'presence:join', 'presence:leave', 'newListener',
  ];
  for (const event of reserved.filter((e) => e !== 'realtime:message')) {
    alice.on(event, (message) => spoken.push([event, message]));
  }
  for (const event of reserved) {
    await alice.publish(name, event, { code: 'X', member: { presenceId: 'forged' } });
  }
  for (const event of reserved) {
    const { meta, code } = await others.next(`message ${event}`);
    assert.deepEqual([meta.event, meta.senderId, code], [event, 'alice', 'X']);
  }
  assert.equal(spoken.length, 0);
  assert.equal(alice.isConnected, true);
  if (newest) assert.equal(alice.getPresenceState(name).some((m) => m.presenceId === 'forged'), false);
});

test('socket.io-client polls first and upgrades, and may ask for acknowledgements', async (t) => {
  const name = room();
  const socket = io(url, { auth: { token: ALICE }, forceNew: true });
  t.after(() => socket.disconnect());
  const upgraded = new Promise((resolve) => {
    socket.io.once('open', () => socket.io.engine.once('upgrade', resolve));
  });
  const answer = await soon(socket.emitWithAck('realtime:subscribe', { channel: name }));
  assert.equal(answer.ok, true);
  const queue = new Queue();
  socket.on('e', (message) => queue.push(message));
  const publish = (body) => soon(socket.emitWithAck('realtime:publish', body));
  const published = await publish({ channel: name, event: 'e', payload: { n: 1 } });
  const first = await queue.next('a message');
  assert.deepEqual([first.n, first.meta.messageId], [1, published.id]);
  await soon(upgraded, 'the upgrade');
  assert.equal(socket.io.engine.transport.name, 'websocket');
  assert.equal((await publish({ channel: name, event: 'e', payload: { n: 2 } })).ok, true);
  assert.equal((await queue.next('a message')).n, 2);
  assert.equal((await publish({ channel: 'room:x', event: 'e' })).error.code, 'REALTIME_NOT_SUBSCRIBED');
  assert.equal((await publish({ channel: name })).error.code, 'REALTIME_INVALID_FRAME');
  assert.deepEqual(await soon(socket.emitWithAck('realtime:auth', { token: ALICE })), { ok: true });
  const refused = await soon(socket.emitWithAck('realtime:auth', { token: EXPIRED }));
  assert.deepEqual([refused.ok, refused.error.code], [false, 'REALTIME_UNAUTHORIZED']);
  const errors = new Queue();
  socket.on('realtime:error', (error) => errors.push(error));
  socket.emit('realtime:publish', { channel: name, event: 'e', payload: new Uint8Array([1]) });
  assert.match((await errors.next('an error')).message, /JSON/);
  socket.emit('what is this');
  assert.equal((await errors.next('an error')).code, 'REALTIME_INVALID_EVENT');
  assert.equal(socket.connected, true);
});

test('a client may go on polling for ever', async (t) => {
  const name = room();
  const socket = io(url, { auth: { token: ALICE }, transports: ['polling'], forceNew: true });
  t.after(() => socket.disconnect());
  assert.equal((await soon(socket.emitWithAck('realtime:subscribe', { channel: name }))).ok, true);
  const queue = new Queue();
  socket.on('e', (message) => queue.push(message.n));
  for (let n = 0; n < 50; n += 1) socket.emit('realtime:publish', { channel: name, event: 'e', payload: { n } });
  for (let n = 0; n < 50; n += 1) assert.equal(await queue.next('a message'), n);
});

test('other namespaces are refused', async (t) => {
  const socket = io(`${url}/api`, { auth: { token: ALICE }, forceNew: true });
  t.after(() => socket.disconnect());
  const error = await soon(new Promise((resolve) => { socket.on('connect_error', resolve); }));
  assert.equal(error.message, 'Invalid namespace');
});
