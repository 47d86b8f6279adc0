// An application on InsForge's SDK as it is. Says on its output what happens to it, until it is
// told to stop.

const { ROWCAST_URL: url, PACKAGE, ANON, ALICE, ROOM } = process.env;
const { createClient } = await import(PACKAGE);
const { realtime } = createClient({ baseUrl: url, anonKey: ANON, edgeFunctionToken: ALICE });
for (const event of ['connect', 'connect_error', 'disconnect', 'error', 'notification']) {
  realtime.on(event, (about) => {
    console.log(event, typeof about === 'string' ? about : (about?.title ?? about?.code ?? ''));
  });
}
realtime.on('e', ({ n }) => console.log('heard', n));
await realtime.connect();
console.log('subscribed', (await realtime.subscribe(ROOM)).ok);
process.stdin.on('data', () => {
  realtime.disconnect();
  process.exit();
});
