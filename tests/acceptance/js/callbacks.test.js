/** Callbacks that change the client which calls them: the change takes effect at once. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Queue, soon, startPeer } from './peer.js';

const member = (key) => ({ type: 'join', key, presence: { key } });

/** Asserts that the client's state does not change any more. */
async function stays(client, state) {
  await new Promise((resolve) => { setTimeout(resolve, 100); }); // longer than any pause of these clients
  assert.equal(client.realtime.state, state);
}

test('disconnect() in an error callback ends the attempts, whatever failed', async (t) => {
  const server = await startPeer(t);
  let calls = 0;
  const client = server.client({ accessToken: () => {
    calls += 1;
    if (calls > 1) throw new Error('logged out');
    return 'token';
  } });
  client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  client.realtime.on('error', () => client.realtime.disconnect());
  peer.socket.terminate();
  assert.equal((await client.errors.next()).code, 'token_unavailable');
  await stays(client, 'closed');
  assert.equal(calls, 2);
});

test('disconnect() in the error of a token that the server refuses ends the attempts', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ accessToken: () => 'token' });
  client.realtime.connect();
  await (await server.next()).welcome();
  client.realtime.on('error', () => client.realtime.disconnect());
  const [peer] = server.server.clients;
  peer.terminate();
  const next = await server.next();
  next.say({ op: 'welcome', session: 's', heartbeat: 25 });
  next.refuse(await next.hear('auth'), 'token_expired');
  assert.equal((await client.errors.next()).code, 'token_expired');
  await stays(client, 'closed');
});

for (const [kind, tell] of [
  ['error', (peer, request) => peer.refuse(request, 'rate_limited', { channel: 'a', retryAfter: 60 })],
  ['closed', (peer, request) => {
    peer.ok(request, { channel: 'a', cursor: 'c0' });
    peer.say({ op: 'closed', channel: 'a', code: 'unavailable' });
  }],
]) {
  test(`disconnect() in a callback of ${kind} leaves no timer that holds the process`, async (t) => {
    const server = await startPeer(t);
    const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
    const before = timers();
    const client = server.client({ minDelay: 60_000, maxDelay: 60_000 });
    const channel = client.realtime.channel('a');
    const told = new Promise((resolve) => {
      channel.on(kind, () => {
        client.realtime.disconnect();
        resolve();
      });
    });
    channel.subscribe();
    const peer = await server.next();
    await peer.welcome();
    tell(peer, await peer.hear('subscribe'));
    await told;
    const began = performance.now();
    // Closing the socket has a timer as well, which is short.
    while (timers() > before && performance.now() - began < 5_000) await new Promise(setImmediate);
    assert.equal(timers(), before);
  });
}

test('members after the one at which a callback unsubscribes are not kept', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, client } = await server.joined(['a']);
  const [channel] = channels;
  channel.on('presence', () => channel.unsubscribe());
  peer.say({ op: 'presence', channel: 'a', events: [member('alice'), member('bob')] });
  assert.equal((await peer.hear('unsubscribe')).channel, 'a');
  assert.deepEqual(channel.presenceState(), []);
  await peer.settled(client);
});

test('a subscription made during the confirmation of an earlier one waits for its own answer', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const channel = client.realtime.channel('a');
  let second;
  const confirmed = new Queue();
  channel.on('subscribed', () => confirmed.push('subscribed'));
  channel.on('presence', ({ key }) => {
    if (key !== 'alice') return;
    channel.unsubscribe();
    second = channel.subscribe();
    second.ready.then(() => confirmed.push('ready'), () => {});
  });
  channel.subscribe();
  const peer = await server.next();
  await peer.welcome();
  peer.ok(await peer.hear('subscribe'), { channel: 'a', cursor: 'c0', presence: [member('alice'), member('bob')] });
  await peer.hear('unsubscribe');
  const request = await peer.hear('subscribe');
  await peer.settled(client);
  assert.equal(second.state, 'subscribing');
  assert.equal(confirmed.length, 0);
  assert.deepEqual(channel.presenceState(), []);
  peer.ok(request, { channel: 'a', cursor: 'c1', presence: [member('bob')] });
  await soon(second.ready);
  assert.deepEqual(channel.presenceState(), [{ key: 'bob' }]);
});

test('messages after the one at which a callback disconnects are delivered after the next connect', async (t) => {
  const server = await startPeer(t);
  const { peer, client, channels } = await server.joined(['a']);
  const heard = new Queue();
  channels[0].on('message', ({ id }) => {
    heard.push(id);
    if (id === 'm1') client.realtime.disconnect();
  });
  peer.messages('a', ['m1', 'm2']);
  assert.equal(await heard.next(), 'm1');
  await peer.closed;
  assert.equal(heard.length, 0);
  client.realtime.connect();
  const next = await server.next();
  await next.welcome();
  const request = await next.hear('subscribe');
  assert.equal(request.after, 'c0');
  next.messages('a', ['m1', 'm2'], { replay: true });
  next.ok(request, { channel: 'a', cursor: 'c1', recovered: true });
  assert.equal(await heard.next(), 'm2');
});

test('messages of an ended subscription are not delivered to the next one', async (t) => {
  const server = await startPeer(t);
  const { client, peer } = await server.joined(['b']);
  const channel = client.realtime.channel('a', { history: 3 });
  const heard = new Queue();
  channel.on('message', ({ id }) => {
    heard.push(id);
    if (id !== 'm1') return;
    channel.unsubscribe();
    channel.subscribe();
  });
  channel.subscribe();
  peer.ok(await peer.hear('subscribe'), { channel: 'a', cursor: 'c1' });
  peer.messages('a', ['m1', 'm3']); // m3 arrives before the history of the next subscription, which contains it
  assert.equal(await heard.next(), 'm1');
  peer.messages('a', ['m4']); // sent before the server has read the unsubscribe
  peer.ok(await peer.hear('unsubscribe'));
  const request = await peer.hear('subscribe');
  peer.messages('a', ['m2', 'm3', 'm4'], { history: true });
  peer.ok(request, { channel: 'a', cursor: 'c4' });
  assert.deepEqual([await heard.next(), await heard.next(), await heard.next()], ['m2', 'm3', 'm4']);
  await peer.settled(client);
  assert.equal(heard.length, 0);
});
