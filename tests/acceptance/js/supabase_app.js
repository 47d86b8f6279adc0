// An application on supabase-js as it is: by its URL and key alone, with a token that is asked for.
// Says on its output what happens to it, until it is told to stop.

import { createClient } from '@supabase/supabase-js';
import WebSocket from 'ws';

const { ROWCAST_URL: url, ANON, ALICE, ROOM, HANDLE } = process.env;
const client = createClient(url, ANON, {
  accessToken: async () => ALICE,
  realtime: { transport: WebSocket, logger: () => {} },
});
await client.realtime.setAuth(); // or the first join would be with the key alone
const channel = client.channel(ROOM, {
  config: { private: true, broadcast: { ack: true, self: true, resume: HANDLE } },
});
channel
  .on('broadcast', { event: '*' }, ({ event, meta }) => console.log(event, meta.senderId ?? 'system'))
  .subscribe(async (status) => {
    console.log(status);
    if (status === 'SUBSCRIBED') {
      console.log(await channel.send({ type: 'broadcast', event: 'mine', payload: {} }));
    }
  });
process.stdin.on('data', async () => {
  console.log(await client.removeAllChannels());
  process.exit();
});
