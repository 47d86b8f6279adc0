"""The naive stack to compare with: a trigger notifies each row, a listener sends it to all sockets.

Run as a script with a database URL; it serves and prints its own URL.
"""

from __future__ import annotations

import asyncio
import sys

import asyncpg
from aiohttp import web

__all__ = ["SETUP"]

# columns and indexes of a durable leaf; defaults in place of the stamping trigger
PLAIN = """
create sequence {name}_seq;
create table {name} (
    seq bigint not null default nextval('{name}_seq'),
    id uuid not null default gen_random_uuid(),
    xid xid8 not null default pg_current_xact_id(),
    type text not null default 'message',
    channel_id uuid default gen_random_uuid(),
    channel_name text not null,
    event_name text not null,
    payload jsonb not null default '{{}}',
    sender_type text not null default 'system',
    sender_id text,
    ws_audience_count integer not null default 0,
    wh_audience_count integer not null default 0,
    publish_key uuid,
    created_at timestamptz not null default clock_timestamp()
);
create index on {name} (xid);
create index on {name} (channel_name, xid);
create index on {name} (channel_id, seq);
create index on {name} using brin (created_at);
"""

SETUP = (
    PLAIN.format(name="plain")
    + PLAIN.format(name="naive")
    + """
create function naive_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('naive', row_to_json(new)::text);
    return null;
end;
$$;
create trigger naive_notify after insert on naive
for each row execute function naive_notify();
"""
)


async def serve(dsn: str) -> None:
    """Serve until the process ends."""
    sockets: set[web.WebSocketResponse] = set()
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        await socket.send_str('{"op":"welcome"}')
        async for _ in socket:  # its first frame subscribes
            sockets.add(socket)
            await socket.send_str('{"op":"ok"}')
        sockets.discard(socket)
        return socket

    app = web.Application()
    app.router.add_get("/realtime", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    connection = await asyncpg.connect(dsn)
    await connection.add_listener("naive", lambda *given: queue.put_nowait(str(given[3])))
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    while True:
        message = await queue.get()
        await asyncio.gather(*(socket.send_str(message) for socket in sockets))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
