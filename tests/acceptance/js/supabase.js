// Unmodified clients of Supabase against the real bridge: run once for each package and version
// of the protocol.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import WebSocket from 'ws';
import { Queue, soon } from './peer.js';

const { ROWCAST_URL: url, PACKAGE, VSN: vsn, ANON, ALICE, BOB, GUEST } = process.env;
const { RealtimeClient } = await import(PACKAGE);
let rooms = 0;

function room(kind = 'room') {
  return `${kind}:${PACKAGE.replace(/\W/g, '')}-${vsn}-${(rooms += 1)}`;
}

function connect(t, token, options = {}) {
  const client = new RealtimeClient(`${url.replace('http', 'ws')}/realtime/v1`, {
    params: { apikey: ANON },
    transport: WebSocket,
    logger: () => {},
    vsn,
    ...options,
  });
  t.after(() => client.disconnect());
  if (token) client.setAuth(token);
  return client;
}

// The states that subscribe() reports, and what comes as broadcasts, as queues.
function listen(client, name, config = {}) {
  const channel = client.channel(name, { config });
  const heard = new Queue();
  const states = new Queue();
  channel.on('broadcast', { event: '*' }, (message) => heard.push(message));
  channel.subscribe((status, error) => states.push({ status, error }));
  return { channel, heard, states };
}

async function joined(client, name, config) {
  const { channel, heard, states } = listen(client, name, config);
  const { status, error } = await soon(states.next());
  assert.equal(status, 'SUBSCRIBED', error);
  return { channel, heard, states };
}

test('what one sends the others hear, and the sender when it wants to', async (t) => {
  const name = room();
  const quiet = await joined(connect(t, ALICE), name, { broadcast: { ack: true } });
  const loud = await joined(connect(t, BOB), name, { broadcast: { ack: true, self: true } });
  const payload = { text: 'häy 💥', deep: [1, { a: null }], huge: 1.5e300 };
  assert.equal(await quiet.channel.send({ type: 'broadcast', event: 'one', payload }), 'ok');
  assert.equal(await loud.channel.send({ type: 'broadcast', event: 'two', payload: {} }), 'ok');
  const [first, second] = [await soon(loud.heard.next()), await soon(loud.heard.next())];
  assert.deepEqual([first.type, first.event, first.payload], ['broadcast', 'one', payload]);
  assert.match(first.meta.id, /^[0-9a-f-]{36}$/);
  assert.equal(first.meta.senderId, 'alice');
  assert.equal(second.event, 'two');
  assert.equal((await soon(quiet.heard.next())).event, 'two');
});

test('without ack send() is answered at once, and the message comes all the same', async (t) => {
  const name = room();
  const { channel } = await joined(connect(t, ALICE), name);
  const { heard } = await joined(connect(t, BOB), name);
  assert.equal(await channel.send({ type: 'broadcast', event: 'e', payload: { n: 1 } }), 'ok');
  assert.deepEqual((await soon(heard.next())).payload, { n: 1 });
});

test('a refused write is an error, not a time-out', async (t) => {
  const { channel } = await joined(connect(t, ALICE), room('readonly'), { broadcast: { ack: true } });
  assert.equal(await soon(channel.send({ type: 'broadcast', event: 'e', payload: {} })), 'error');
});

test('a refused join says why', async (t) => {
  const { states } = listen(connect(t), room('members'), { private: true });
  const { status, error } = await soon(states.next());
  assert.equal(status, 'CHANNEL_ERROR');
  assert.match(error.message, /forbidden/);
});

test('a user who signs in after connecting may join the channels of users', async (t) => {
  const client = connect(t);
  await joined(client, room());
  await client.setAuth(ALICE);
  await joined(client, room('members'), { private: true });
});

test('a new token that allows less closes what it does not allow', async (t) => {
  const client = connect(t, ALICE);
  const name = room('members');
  const { channel, states } = await joined(client, name);
  const told = new Queue();
  channel.on('system', {}, (message) => told.push(message));
  await client.setAuth(GUEST);
  assert.match((await soon(told.next())).message, /revoked/);
  assert.equal((await soon(states.next())).status, 'CLOSED');
});

test('another user on the same client connects again, and is that user', async (t) => {
  const client = connect(t, ALICE);
  const name = room();
  const { channel, states } = await joined(client, name, { broadcast: { ack: true } });
  const { heard } = await joined(connect(t, ALICE), name);
  await client.setAuth(BOB);
  assert.equal((await soon(states.next())).status, 'CHANNEL_ERROR');
  assert.equal((await soon(states.next())).status, 'SUBSCRIBED');
  assert.equal(await channel.send({ type: 'broadcast', event: 'e', payload: {} }), 'ok');
  assert.equal((await soon(heard.next())).meta.senderId, 'bob');
});

test('another user may follow on the same connection once the first has left', async (t) => {
  const client = connect(t, ALICE);
  const { channel } = await joined(client, room());
  const kept = client.channel(room()); // so that the connection stays
  assert.equal(await channel.unsubscribe(), 'ok');
  await client.setAuth(BOB);
  await joined(client, room('members'), { broadcast: { ack: true } });
  kept.teardown();
});

test('a client that has left gets no messages, and may return', async (t) => {
  const name = room();
  const client = connect(t, ALICE);
  const { channel, heard, states } = await joined(client, name);
  const other = await joined(connect(t, BOB), name, { broadcast: { ack: true, self: true } });
  assert.equal(await channel.unsubscribe(), 'ok');
  assert.equal((await soon(states.next())).status, 'CLOSED');
  await other.channel.send({ type: 'broadcast', event: 'missed', payload: {} });
  await soon(other.heard.next());
  const again = await joined(client, name);
  await other.channel.send({ type: 'broadcast', event: 'heard', payload: {} });
  assert.equal((await soon(again.heard.next())).event, 'heard');
  assert.equal(heard.length, 0);
});

test('bytes stay bytes', { skip: vsn === '1.0.0' }, async (t) => {
  const name = room();
  const { heard } = await joined(connect(t, BOB), name);
  const { channel } = await joined(connect(t, ALICE), name, { broadcast: { ack: true } });
  for (const bytes of [[], [0], [255, 0, 10, 13], [...Array(70_000).keys()].map((n) => n % 251)]) {
    const payload = new Uint8Array(bytes).buffer;
    assert.equal(await channel.send({ type: 'broadcast', event: 'bytes', payload }), 'ok');
    const message = await soon(heard.next());
    assert.deepEqual([...new Uint8Array(message.payload)], bytes);
    assert.equal(message.meta.senderId, 'alice');
  }
});

test('a message whose event is a word of the protocol stays a message', async (t) => {
  const name = room();
  const client = connect(t, BOB);
  const { channel, heard, states } = await joined(client, name);
  const system = new Queue();
  channel.on('system', {}, (message) => system.push(message));
  const forger = await joined(connect(t, ALICE), name, { broadcast: { ack: true } });
  const words = [
    'phx_reply', 'phx_close', 'phx_error', 'system', 'presence_state', 'presence_diff',
    'postgres_changes', 'access_token', 'heartbeat', 'broadcast',
  ];
  for (const event of words) {
    const payload = { status: 'error', response: {}, extension: 'system', message: 'x', ids: [1] };
    assert.equal(await forger.channel.send({ type: 'broadcast', event, payload }), 'ok', event);
    assert.equal((await soon(heard.next())).event, event);
  }
  assert.equal(channel.state, 'joined');
  assert.equal(system.length, 0);
  assert.deepEqual(channel.presenceState(), {});
  assert.equal(states.length, 0);
});

test('Postgres Changes are refused with what to do instead', async (t) => {
  const client = connect(t, ALICE);
  const states = new Queue();
  client
    .channel(room())
    .on('postgres_changes', { event: '*', schema: 'public', table: 'orders' }, () => {})
    .subscribe((status, error) => states.push({ status, error }));
  const { status, error } = await soon(states.next());
  assert.equal(status, 'CHANNEL_ERROR');
  assert.match(error.message, /rowcast\.attach/);
});

test('a bad key is refused before the socket opens', async (t) => {
  const client = connect(t, null, { params: { apikey: 'no.such.key' } });
  const { states } = listen(client, room());
  assert.equal((await soon(states.next())).status, 'CHANNEL_ERROR');
  assert.equal(client.isConnected(), false);
});

test('heartbeats are answered', async (t) => {
  const beats = new Queue();
  const client = connect(t, ALICE, {
    heartbeatIntervalMs: 50,
    heartbeatCallback: (status) => beats.push(status),
  });
  await joined(client, room());
  const seen = [];
  while (seen.filter((status) => status === 'ok').length < 3) seen.push(await soon(beats.next()));
  assert.ok(!seen.includes('timeout') && !seen.includes('error'), seen.join());
});

test('a handle brings what was missed while the connection was gone', async (t) => {
  const name = room();
  const client = connect(t, ALICE);
  const broadcast = { ack: true, resume: crypto.randomUUID() };
  const { channel, heard, states } = await joined(client, name, { broadcast });
  const other = await joined(connect(t, BOB), name, { broadcast: { ack: true } });
  await other.channel.send({ type: 'broadcast', event: 'before', payload: {} });
  assert.equal((await soon(heard.next())).event, 'before');
  await channel.send({ type: 'broadcast', event: 'mine', payload: {} });
  client.socketAdapter.getSocket().conn.terminate();
  await other.channel.send({ type: 'broadcast', event: 'missed', payload: {} });
  assert.equal((await soon(states.next())).status, 'CHANNEL_ERROR');
  assert.equal((await soon(states.next())).status, 'SUBSCRIBED');
  const replayed = [await soon(heard.next())];
  while (replayed.at(-1).event !== 'missed') replayed.push(await soon(heard.next()));
  assert.ok(replayed.every((message) => message.meta.replayed));
});

test('httpSend() publishes, also bytes, and rejects with the reason', async (t) => {
  const name = room();
  const { heard } = await joined(connect(t, BOB), name);
  const client = connect(t, ALICE);
  const channel = client.channel(name);
  assert.deepEqual(await channel.httpSend('a/b ü', { a: 1 }), { success: true });
  const message = await soon(heard.next());
  assert.deepEqual([message.event, message.payload], ['a/b ü', { a: 1 }]);
  assert.equal(message.meta.senderId, 'alice');
  await assert.rejects(client.channel(room('readonly')).httpSend('e', {}), /policies/);
  if (PACKAGE === 'realtime-js-2-109') return; // has no bytes here
  await channel.httpSend('bytes', new Uint8Array([1, 2, 255]));
  const { payload } = await soon(heard.next());
  if (vsn === '2.0.0') assert.deepEqual([...new Uint8Array(payload)], [1, 2, 255]);
  else assert.deepEqual(payload, { $binary: 'AQL/' });
});

test('what is sent before the channel is joined goes by HTTP', async (t) => {
  const name = room();
  const { heard } = await joined(connect(t, BOB), name);
  const channel = connect(t, ALICE).channel(name);
  assert.equal(await channel.send({ type: 'broadcast', event: 'early', payload: { a: 1 } }), 'ok');
  assert.deepEqual((await soon(heard.next())).payload, { a: 1 });
  const refused = connect(t, ALICE).channel(room('readonly'));
  assert.equal(await refused.send({ type: 'broadcast', event: 'e', payload: {} }), 'error');
});

test('presence: members, joins, updates and leaves', async (t) => {
  const name = room();
  const watch = (token) => {
    const channel = connect(t, token).channel(name);
    const events = new Queue();
    for (const event of ['join', 'leave']) {
      channel.on('presence', { event }, ({ key, newPresences, leftPresences }) => {
        const [presence] = newPresences ?? leftPresences;
        events.push(`${event} ${key} ${presence.status}`);
      });
    }
    channel.on('presence', { event: 'sync' }, () => synced.push(channel.presenceState()));
    const synced = new Queue();
    const subscribed = new Promise((resolve) => {
      channel.subscribe((status) => status === 'SUBSCRIBED' && resolve());
    });
    return { channel, events, synced, subscribed };
  };
  const first = watch(ALICE);
  await soon(first.subscribed);
  assert.deepEqual(await soon(first.synced.next()), {});
  assert.equal(await first.channel.track({ status: 'here' }), 'ok');
  assert.equal(await soon(first.events.next()), 'join alice here');
  const second = watch(BOB);
  await soon(second.subscribed);
  assert.equal(await soon(second.events.next()), 'join alice here');
  assert.equal(await second.channel.track({ status: 'too' }), 'ok');
  assert.equal(await soon(first.events.next()), 'join bob too');
  assert.equal(await soon(second.events.next()), 'join bob too');
  assert.equal(await first.channel.track({ status: 'away' }), 'ok');
  assert.equal(await soon(second.events.next()), 'leave alice here');
  assert.equal(await soon(second.events.next()), 'join alice away');
  const state = second.channel.presenceState();
  assert.deepEqual(Object.keys(state).sort(), ['alice', 'bob']);
  assert.equal(state.alice.length, 1);
  assert.equal(state.alice[0].status, 'away');
  assert.notEqual(state.alice[0].presence_ref, state.bob[0].presence_ref);
  assert.equal(await first.channel.untrack(), 'ok');
  assert.equal(await soon(second.events.next()), 'leave alice away');
  await second.channel.unsubscribe();
  while ((await soon(first.events.next())) !== 'leave bob too'); // it is told, not at once
  const third = watch(ALICE);
  await soon(third.subscribed);
  assert.deepEqual(await soon(third.synced.next()), {});
});

test('a client that does not ask for presence is told nothing of it', async (t) => {
  const name = room();
  const client = connect(t, BOB);
  const frames = [];
  const { channel, heard } = await joined(client, name, { broadcast: { ack: true, self: true } });
  client.socketAdapter.onMessage(({ event }) => frames.push(event));
  const other = connect(t, ALICE).channel(name);
  const synced = new Queue();
  other.on('presence', { event: 'sync' }, () => synced.push(Object.keys(other.presenceState())));
  other.subscribe();
  await soon(synced.next());
  assert.equal(await other.track({ a: 1 }), 'ok');
  assert.deepEqual(await soon(synced.next()), ['alice']);
  await channel.send({ type: 'broadcast', event: 'e', payload: {} });
  await soon(heard.next());
  assert.ok(!frames.some((event) => event.startsWith('presence')), frames.join());
});
