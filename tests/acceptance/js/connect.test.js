import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Queue, soon, startPeer } from './peer.js';

test('connect() resolves when the server has answered, with the key on the URL', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect();
  const peer = await server.next();
  assert.equal(peer.url, '/realtime?apikey=anon');
  assert.equal((await peer.welcome()).op, 'ping');
  await soon(connected);
  assert.equal(client.realtime.state, 'open');
});

test('a base URL may have a path and a slash at its end', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ baseUrl: `${server.baseUrl}/db/`, anonKey: undefined });
  client.realtime.connect().catch(() => {});
  assert.equal((await server.next()).url, '/db/realtime');
});

test('a token goes into the first frame, never on the URL, and no frame is sent before its answer', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  client.realtime.channel('a').subscribe();
  const connected = client.realtime.connect({ accessToken: 'secret' });
  const peer = await server.next();
  assert.ok(!peer.url.includes('secret'));
  peer.say({ op: 'welcome', session: 's', heartbeat: 25 });
  const auth = await peer.hear('auth');
  assert.equal(auth.token, 'secret');
  peer.ok(auth, { user: 'alice', role: 'authenticated' });
  await soon(connected);
  assert.equal((await peer.hear('subscribe')).channel, 'a');
});

test('connect() rejects with the server\'s reason when the key on the URL is bad, even after a welcome', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect();
  const peer = await server.next();
  peer.say({ op: 'welcome', session: 's', heartbeat: 25 });
  await peer.hear('ping');
  peer.refuse(null, 'invalid_token');
  peer.socket.close(3500, 'invalid');
  await assert.rejects(soon(connected), { code: 'invalid_token', message: 'refused: invalid_token' });
  assert.equal(client.realtime.state, 'closed');
});

test('connect() rejects when the token is bad, and does not try again', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect({ accessToken: 'bad' });
  const peer = await server.next();
  peer.say({ op: 'welcome', session: 's', heartbeat: 25 });
  peer.refuse(await peer.hear('auth'), 'token_expired');
  await assert.rejects(soon(connected), { code: 'token_expired' });
  assert.equal(client.realtime.state, 'closed');
});

test('connect() rejects when accessToken() fails', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ accessToken: async () => { throw new Error('logged out'); } });
  await assert.rejects(soon(client.realtime.connect()), { code: 'token_unavailable', message: /logged out/ });
});

test('connect() rejects in time without a server, and the attempts end', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ baseUrl: 'http://127.0.0.1:1', connectTimeout: 100 });
  await assert.rejects(soon(client.realtime.connect()), { code: 'unreachable' });
  assert.equal(client.realtime.state, 'closed');
});

test('connect() keeps trying until the server answers', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect();
  (await server.next()).socket.terminate();
  (await server.next()).socket.close(3002, 'full');
  await (await server.next()).welcome();
  await soon(connected);
});

test('a frame directly after the welcome is not lost', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const sent = client.realtime.channel('a').send({ event: 'e', payload: 1 });
  const peer = await server.next();
  await peer.welcome();
  peer.ok(await peer.hear('publish'), { id: 'm1' });
  assert.deepEqual(await soon(sent), { data: { id: 'm1' }, error: null });
});

for (const [code, name] of [[1001, 'going away'], [1012, 'restart'], [3000, 'draining'], [4000, 'unknown']]) {
  test(`close code ${code} (${name}) means reconnect`, async (t) => {
    const server = await startPeer(t);
    const client = server.client();
    const seen = new Queue();
    for (const kind of ['connect', 'disconnect', 'reconnecting']) client.realtime.on(kind, () => seen.push(kind));
    client.realtime.connect();
    const first = await server.next();
    await first.welcome();
    assert.equal(await seen.next(), 'connect');
    first.socket.close(code, name);
    await (await server.next()).welcome();
    assert.equal(await seen.next(), 'disconnect');
    assert.equal(await seen.next(), 'reconnecting');
    assert.equal(await seen.next(), 'connect');
  });
}

test('close codes 3500 to 3999 mean stop, with an error that has the reason', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  await soon(connected);
  peer.socket.close(3503, 'too many invalid frames');
  const error = await client.errors.next();
  assert.equal(error.code, 'closed');
  assert.match(error.message, /3503.*too many invalid frames/);
  assert.equal(client.realtime.state, 'closed');
});

test('the delays between attempts grow, and have jitter', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ baseUrl: 'http://127.0.0.1:1', minDelay: 4, maxDelay: 64, connectTimeout: 5000 });
  const delays = [];
  const enough = new Promise((resolve) => {
    client.realtime.on('reconnecting', ({ delay }) => { if (delays.push(delay) === 7) resolve(); });
  });
  client.realtime.connect().catch(() => {});
  await soon(enough);
  delays.forEach((delay, n) => {
    const whole = Math.min(64, 4 * 2 ** n);
    assert.ok(delay >= whole / 4 && delay <= whole, `${delay} of ${whole}`);
  });
});

test('accessToken() is called at each connect', async (t) => {
  const server = await startPeer(t);
  let calls = 0;
  const client = server.client({ accessToken: async () => `token${(calls += 1)}` });
  client.realtime.connect();
  const first = await server.next();
  assert.equal((await first.welcome()).token, 'token1');
  first.socket.terminate();
  assert.equal((await (await server.next()).welcome()).token, 'token2');
});

test('a token that is about to expire is refreshed on the open connection', async (t) => {
  const server = await startPeer(t);
  let calls = 0;
  const client = server.client({ accessToken: () => `token${(calls += 1)}` });
  client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  peer.say({ op: 'status', status: 'token_expiring' });
  const auth = await peer.hear('auth');
  assert.equal(auth.token, 'token2');
  peer.ok(auth, { user: 'alice' });
  await peer.settled(client);
  assert.equal(client.errors.length, 0);
});

test('an expired token is replaced by reconnecting when accessToken is a function', async (t) => {
  const server = await startPeer(t);
  let calls = 0;
  const client = server.client({ accessToken: () => `token${(calls += 1)}` });
  await Promise.all([client.realtime.connect(), server.next().then(async (peer) => {
    await peer.welcome();
    peer.refuse(null, 'token_expired');
    peer.socket.close(3501, 'expired');
  })]);
  assert.equal((await (await server.next()).welcome()).token, 'token2');
});

test('an expired token that is a string stops the client with an error', async (t) => {
  const server = await startPeer(t);
  const client = server.client({ accessToken: 'text' });
  client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  peer.refuse(null, 'token_expired');
  peer.socket.close(3501, 'expired');
  assert.equal((await client.errors.next()).code, 'token_expired');
  await peer.closed;
  assert.equal(client.errors.length, 0);
});

test('setAuth() presents a token on the open connection, or on a new one if the server wants that', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  await soon(connected);
  const alice = client.realtime.setAuth('alice');
  peer.ok(await peer.hear('auth'), { user: 'alice' });
  await soon(alice);
  const bob = client.realtime.setAuth('bob');
  peer.refuse(await peer.hear('auth'), 'invalid_token');
  assert.equal((await (await server.next()).welcome()).token, 'bob');
  await soon(bob);
});

test('a silent connection is pinged, and closed without an answer', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  client.realtime.connect();
  const first = await server.next();
  await first.welcome({ heartbeat: 0.05 });
  first.ok(await first.hear('ping'));
  await first.hear('ping'); // without an answer
  await (await server.next()).welcome();
});

test('disconnect() closes the socket and settles all waiting calls', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const subscription = client.realtime.channel('a').subscribe();
  const sent = client.realtime.channel('a').send({ event: 'e', payload: 1 });
  const tracked = client.realtime.channel('a').track({ on: true });
  const peer = await server.next();
  await peer.welcome();
  await peer.hear('subscribe');
  client.realtime.disconnect();
  assert.equal((await soon(sent)).error.code, 'disconnected');
  assert.equal((await soon(tracked)).error.code, 'disconnected');
  await assert.rejects(soon(subscription.ready), { code: 'disconnected' });
  assert.equal(await soon(peer.closed), 1005);
  assert.equal(client.errors.length, 0);
});

test('connect() after disconnect() resumes the subscriptions', async (t) => {
  const server = await startPeer(t);
  const { client, heard, peer } = await server.joined(['a']);
  peer.messages('a', ['m1']);
  peer.say({ op: 'cursor', cursor: 'c1' });
  await heard[0].next();
  await peer.settled(client);
  client.realtime.disconnect();
  client.realtime.connect();
  const next = await server.next();
  await next.welcome();
  assert.equal((await next.hear('subscribe')).after, 'c1');
});

test('another user on a new connection has the same channels', async (t) => {
  const server = await startPeer(t);
  const { peer, client, channels, heard } = await server.joined(['a']);
  const told = new Queue();
  client.realtime.on('disconnect', () => told.push('disconnect'));
  client.realtime.on('connect', () => told.push('connect'));
  const tracked = channels[0].track({ x: 1 });
  peer.ok(await peer.hear('track'));
  await soon(tracked);
  const bob = client.realtime.connect({ accessToken: 'bob' });
  peer.refuse(await peer.hear('auth'), 'invalid_token');
  const next = await server.next();
  await next.welcome();
  await soon(bob);
  const request = await next.hear('subscribe');
  assert.deepEqual([request.channel, request.after], ['a', 'c0']);
  next.messages('a', ['m1'], { replay: true });
  next.ok(request, { channel: 'a', cursor: 'c1', recovered: true });
  assert.equal(await heard[0].next(), 'm1');
  assert.deepEqual((await next.hear('track')).state, { x: 1 });
  assert.deepEqual([await told.next(), await told.next()], ['disconnect', 'connect']);
});

test('a refresh that hangs during a disconnect does not prevent later ones', async (t) => {
  const server = await startPeer(t);
  const given = [];
  const client = server.client({ accessToken: () => (given.push(1) === 2 ? new Promise(() => {}) : `token${given.length}`) });
  client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  peer.say({ op: 'status', status: 'token_expiring' });
  await peer.settled(client);
  client.realtime.disconnect();
  client.realtime.connect();
  const next = await server.next();
  assert.equal((await next.welcome()).token, 'token3');
  next.say({ op: 'status', status: 'token_expiring' });
  assert.equal((await next.hear('auth')).token, 'token4');
});

test('disconnect() settles a setAuth() whose function hangs', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect();
  await (await server.next()).welcome();
  await soon(connected);
  const changed = client.realtime.setAuth(() => new Promise(() => {}));
  client.realtime.disconnect();
  await assert.rejects(soon(changed), { code: 'token_unavailable' });
  assert.equal(client.errors.length, 0);
});

test('disconnect() lets the process end although the server never answers', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const connected = client.realtime.connect();
  const peer = await server.next();
  await peer.welcome();
  await soon(connected);
  peer.socket._socket.pause(); // half open: it never reads what the client sends
  const began = performance.now();
  client.realtime.disconnect();
  const sockets = () => process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
  while (sockets() > 1 && performance.now() - began < 10_000) await new Promise((resolve) => { setTimeout(resolve, 20); });
  assert.equal(sockets(), 1); // the server's
});
