import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { Queue, soon, startPeer } from './peer.js';

test('track() subscribes if necessary and resolves once the server has accepted the state', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const tracked = client.realtime.channel('a').track({ status: 'online' });
  const peer = await server.next();
  await peer.welcome();
  peer.ok(await peer.hear('subscribe'), { channel: 'a', cursor: 'c', presence: [] });
  const track = await peer.hear('track');
  assert.deepEqual([track.channel, track.state], ['a', { status: 'online' }]);
  peer.ok(track);
  assert.equal((await soon(tracked)).error, null);
});

test('a server without presence gives an error result, and the subscription that track() made ends', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const tracked = client.realtime.channel('a').track({ on: true });
  const peer = await server.next();
  await peer.welcome();
  peer.ok(await peer.hear('subscribe'), { channel: 'a', cursor: 'c' });
  peer.refuse(await peer.hear('track'), 'unsupported', { channel: 'a' });
  assert.equal((await soon(tracked)).error.code, 'unsupported');
  assert.equal((await peer.hear('unsubscribe')).channel, 'a');
});

test('track() in a forbidden channel gives an error result', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const tracked = client.realtime.channel('a').track({ on: true });
  const peer = await server.next();
  await peer.welcome();
  peer.refuse(await peer.hear('subscribe'), 'forbidden', { channel: 'a' });
  assert.equal((await soon(tracked)).error.code, 'forbidden');
});

test('presence events keep the state: join, update, leave', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const events = new Queue();
  channels[0].on('presence', (event) => events.push(event));
  const say = (type, key, presence) => peer.say({ op: 'presence', channel: 'a', events: [{ type, key, presence }] });
  say('join', 'alice', { x: 1 });
  say('join', 'bob', { x: 2 });
  say('update', 'alice', { x: 3 });
  say('leave', 'bob');
  assert.deepEqual(await events.next(), { type: 'join', key: 'alice', presence: { x: 1 } });
  await events.next();
  assert.deepEqual(await events.next(), { type: 'update', key: 'alice', presence: { x: 3 } });
  assert.deepEqual(await events.next(), { type: 'leave', key: 'bob', presence: { x: 2 } });
  assert.deepEqual(channels[0].presenceState(), [{ x: 3 }]);
});

test('a whole list becomes the events that lead to it', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const events = new Queue();
  channels[0].on('presence', ({ type, key }) => events.push(`${type} ${key}`));
  const list = (...entries) => entries.map(([key, presence]) => ({ type: 'join', key, presence }));
  peer.say({ op: 'presence', channel: 'a', full: true, events: list(['alice', { x: 1 }], ['bob', { x: 1 }], ['carol', { x: 1 }]) });
  for (const name of ['alice', 'bob', 'carol']) assert.equal(await events.next(), `join ${name}`);
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  const presence = [{ key: 'alice', presence: { x: 1 } }, { key: 'carol', presence: { x: 2 } }, { key: 'dave', presence: { x: 1 } }];
  next.ok(await next.hear('subscribe'), { channel: 'a', cursor: 'c1', recovered: true, presence });
  for (const event of ['leave bob', 'update carol', 'join dave']) assert.equal(await events.next(), event);
  assert.equal(events.length, 0);
});

test('rapid updates coalesce: of the waiting ones only the newest is sent', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const results = Array.from({ length: 100 }, (_, x) => channels[0].track({ x }));
  const first = await peer.hear('track');
  assert.deepEqual(first.state, { x: 0 });
  peer.ok(first);
  const second = await peer.hear('track');
  assert.deepEqual(second.state, { x: 99 });
  peer.refuse(second, 'rate_limited', { retryAfter: 0.05 });
  const third = await peer.hear('track');
  assert.deepEqual(third.state, { x: 99 });
  peer.ok(third);
  assert.ok((await soon(Promise.all(results))).every(({ error }) => error === null));
});

test('a reconnected client is present again', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const tracked = channels[0].track({ x: 1 });
  peer.ok(await peer.hear('track'));
  await soon(tracked);
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  next.ok(await next.hear('subscribe'), { channel: 'a', cursor: 'c1', recovered: true });
  assert.deepEqual((await next.hear('track')).state, { x: 1 });
});

test('after a refusal the previous state stays: untrack() ends it, a reconnect sends it again', async (t) => {
  const server = await startPeer(t);
  const { peer, channels } = await server.joined(['a']);
  const first = channels[0].track({ x: 1 });
  peer.ok(await peer.hear('track'));
  await soon(first);
  const second = channels[0].track({ x: 'too large' });
  peer.refuse(await peer.hear('track'), 'payload_too_large', { channel: 'a' });
  assert.equal((await soon(second)).error.code, 'payload_too_large');
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  next.ok(await next.hear('subscribe'), { channel: 'a', cursor: 'c1', recovered: true });
  const again = await next.hear('track');
  assert.deepEqual(again.state, { x: 1 });
  next.ok(again);
  const untracked = channels[0].untrack();
  next.ok(await next.hear('untrack'));
  assert.equal((await soon(untracked)).error, null);
});

test('after a reconnect a presence that is refused for now is sent again', async (t) => {
  const server = await startPeer(t);
  const { peer, channels, client } = await server.joined(['a']);
  const tracked = channels[0].track({ x: 1 });
  peer.ok(await peer.hear('track'));
  await soon(tracked);
  peer.socket.terminate();
  const next = await server.next();
  await next.welcome();
  next.ok(await next.hear('subscribe'), { channel: 'a', cursor: 'c1', recovered: true });
  next.refuse(await next.hear('track'), 'unavailable', { channel: 'a', retryAfter: 0.01 });
  const again = await next.hear('track');
  assert.deepEqual(again.state, { x: 1 });
  next.refuse(again, 'too_many_members', { channel: 'a' }); // final; an event, because no call waits for it
  const error = await client.errors.next();
  assert.deepEqual([error.code, error.channel], ['too_many_members', 'a']);
});

test('untrack() ends the presence and the subscription that track() made', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const channel = client.realtime.channel('a');
  const tracked = channel.track({ x: 1 });
  const peer = await server.next();
  await peer.welcome();
  peer.ok(await peer.hear('subscribe'), { channel: 'a', cursor: 'c' });
  peer.ok(await peer.hear('track'));
  await soon(tracked);
  const untracked = channel.untrack();
  peer.ok(await peer.hear('untrack'));
  assert.equal((await peer.hear('unsubscribe')).channel, 'a');
  assert.equal((await soon(untracked)).error, null);
  assert.equal((await soon(channel.untrack())).error, null);
});

/** Returns a snippet of the page as a function of its surroundings. */
async function snippet(title, names) {
  const text = await readFile(new URL('page.md', import.meta.url), 'utf8');
  const [, code] = text.split(`## ${title}\n`)[1].match(/```js\n([\s\S]*?)```/);
  const AsyncFunction = (async () => {}).constructor;
  return new AsyncFunction(...names, code);
}

test('the presence of the page runs as written', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const lines = new Queue();
  const run = (await snippet('Presence', ['client', 'console']))(client, { log: (...values) => lines.push(values) });
  const peer = await server.next();
  await peer.welcome();
  peer.ok(await peer.hear('subscribe'), { channel: 'chat:room1', cursor: 'c', presence: [] });
  const track = await peer.hear('track');
  assert.deepEqual(track.state, { user_id: '123', username: 'John', status: 'online' });
  peer.ok(track);
  await soon(run);
  const say = (type) => peer.say({ op: 'presence', channel: 'chat:room1', events: [{ type, key: 'k', presence: { username: 'Ann' } }] });
  say('join');
  say('leave');
  assert.deepEqual(await lines.next(), ['User joined:', { username: 'Ann' }]);
  assert.deepEqual(await lines.next(), ['User left:', { username: 'Ann' }]);
});

test('the cursors of the page run as written', async (t) => {
  const server = await startPeer(t);
  const client = server.client();
  const rendered = new Queue();
  const page = new EventTarget();
  const move = (clientX) => page.dispatchEvent(Object.assign(new Event('mousemove'), { clientX, clientY: 0 }));
  const names = ['client', 'document', 'userId', 'renderCursors'];
  await (await snippet('Cursors', names))(client, page, 'alice', (users) => rendered.push(users));
  move(1);
  move(2);
  const peer = await server.next();
  await peer.welcome();
  peer.ok(await peer.hear('subscribe'), { channel: 'document:123', cursor: 'c', presence: [] });
  const track = await peer.hear('track');
  assert.deepEqual(track.state, { user_id: 'alice', cursor: { x: 2, y: 0 } });
  peer.say({ op: 'presence', channel: 'document:123', events: [{ type: 'join', key: 'alice', presence: track.state }] });
  assert.deepEqual(await rendered.next(), [{ user_id: 'alice', cursor: { x: 2, y: 0 } }]);
});
