"""Runs several bridges on one port: a parent process starts workers, and restarts those that end.

Each worker is a whole bridge and does not depend on its parent. The parent holds no connections
and serves no clients, so that nothing in it can fail under load. A worker whose parent is gone
ends as well: the pipe that is its standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

from prometheus_client.multiprocess import mark_process_dead

from rowcast.config import Settings, unknown
from rowcast.errors import ConfigError
from rowcast.observe import configure, observe

from .port import hold_port, url_of

__all__ = ["supervise"]

# Seconds until a worker that ended is started again, at first and at most.
PAUSE = 0.5
PAUSE_MAX = 15.0
# Seconds after which a worker's end is not blamed on its start, and the pause begins anew.
STABLE = 30.0
# Seconds that a worker gets to end, beyond its drain.
GRACE = 10.0


async def supervise(
    settings: Settings, *, ready: Callable[[str, list[int]], None] | None = None
) -> None:
    """Run workers until SIGTERM or SIGINT, then let them end and return.

    Args:
        settings: complete settings; `workers` of them run.
        ready: called with the base URL and the workers' process ids once all of them serve.

    Raises:
        ConfigError: a worker could not start, or did not end as it should.
    """
    configure(settings.log_format)
    with hold_port(settings) as reserved, tempfile.TemporaryDirectory(prefix="rowcast-") as shared:
        group = _Workers(settings, reserved, shared, ready)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, group.stop)
        try:
            await asyncio.gather(*(group.keep(slot) for slot in range(settings.workers)))
        finally:
            group.kill()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        if group.failure:
            raise ConfigError(group.failure)
        observe("stopped")


class _Workers:
    def __init__(
        self,
        settings: Settings,
        reserved: socket.socket,
        shared: str,
        ready: Callable[[str, list[int]], None] | None,
    ) -> None:
        self.failure = ""
        self._settings = settings
        self._url = url_of(reserved)
        self._environment = _environment(reserved.getsockname()[1], settings.host, shared)
        self._shared = shared
        self._ready = ready
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._serving: set[int] = set()
        self._complete = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Tell all workers to end, once."""
        if not self._stopping.is_set():
            observe("draining", workers=len(self._running))
            self._stopping.set()
            for process in self._running.values():
                _signal(process, signal.SIGTERM)

    def kill(self) -> None:
        """Kill all workers that still run."""
        for process in self._running.values():
            _signal(process, signal.SIGKILL)

    async def keep(self, slot: int) -> None:
        """Keep one worker running, and restart it when it ends, until all stop."""
        pause = PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run(slot)
            if self._stopping.is_set():
                if code not in (0, -signal.SIGTERM):
                    self.failure = self.failure or f"A worker ended with {code}."
            elif not self._complete:
                # The cause would keep all workers from starting.
                self.failure = f"A worker ended with {code} before all could serve."
                self.stop()
            else:
                observe("worker_lost", slot=slot, code=code, pause=round(pause, 1))
                if time.monotonic() - began > STABLE:
                    pause = PAUSE
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause * random.uniform(0.5, 1)):
                        await self._stopping.wait()
                pause = min(pause * 2, PAUSE_MAX)

    async def _run(self, slot: int) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rowcast", "serve", "--end-with-stdin",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=self._environment,
        )  # fmt: skip
        self._running[slot] = process
        if self._stopping.is_set():
            _signal(process, signal.SIGTERM)
        hearing = asyncio.create_task(self._hear(slot, process))
        try:
            ended = asyncio.create_task(process.wait())
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_timeout + GRACE):
                    return await asyncio.shield(ended)
            _signal(process, signal.SIGKILL)
            return await ended
        finally:
            await hearing
            del self._running[slot]
            self._serving.discard(slot)
            mark_process_dead(process.pid, self._shared)  # type: ignore[no-untyped-call]

    async def _hear(self, slot: int, process: asyncio.subprocess.Process) -> None:
        """Read a worker's output: one line when it serves."""
        assert process.stdout is not None
        async for line in process.stdout:
            with contextlib.suppress(ValueError):
                if json.loads(line).get("event") == "ready":
                    self._serving.add(slot)
                    self._tell()

    def _tell(self) -> None:
        if self._complete or len(self._serving) < self._settings.workers:
            return
        self._complete = True
        pids = [process.pid for process in self._running.values()]
        observe("started", url=self._url, workers=len(pids))
        if self._ready is not None:
            self._ready(self._url, pids)


def _environment(port: int, host: str, shared: str) -> Mapping[str, str]:
    told = unknown(os.environ)  # the parent has warned of these already
    return {
        **{name: value for name, value in os.environ.items() if name not in told},
        "ROWCAST_HOST": host,
        "ROWCAST_PORT": str(port),
        "ROWCAST_REUSE_PORT": "yes",
        "ROWCAST_WORKERS": "1",
        # the directory of all workers' counters, so that each can report the sums
        "PROMETHEUS_MULTIPROC_DIR": shared,
    }


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
