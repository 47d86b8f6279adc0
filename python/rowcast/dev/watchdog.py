"""The parent process of an embedded PostgreSQL: stops it when rowcast dies, and ends with it.

`dev.server` runs this file as a script and never imports it: it must load fast, and work where the
virtual environment cannot be imported. It is a process because the parent-death signal of Linux is
not enough: that signal comes when the *thread* that forked ends, so a server started from a thread
pool would stop at random, and other systems do not have it. Here the main thread forks, so the
signal covers the case that this watchdog is killed.

The rowcast process holds the other end of standard input. The end of that stream, or a new parent
process, means that rowcast is gone, and the server is shut down.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from types import FrameType

__all__: list[str] = []

PR_SET_PDEATHSIG = 1


def main(uid: int, command: list[str]) -> int:
    """Run `command` as `uid` (-1: the present one), print its pid, and end with either side."""
    parent, watchdog = os.getppid(), os.getpid()
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    # Signals become bytes on a pipe, so that one select waits for signals and streams.
    waken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_watchdog() -> None:
        # Runs before the exec, and after the change of uid, which would clear the request.
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != watchdog:
                os._exit(1)

    identity = {} if uid < 0 else {"user": uid, "group": uid, "extra_groups": []}
    child: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        preexec_fn=die_with_watchdog,  # safe, because this process has one thread
        **identity,  # type: ignore[call-overload]
    )
    os.write(1, b"%d\n" % child.pid)
    os.close(1)
    while child.poll() is None:
        # A fork of rowcast may keep the stream open after its death: check the parent, too.
        ready, _, _ = select.select([0, waken], [], [], 1.0)
        if waken in ready:
            os.read(waken, 4096)
        if received or os.getppid() != parent or (0 in ready and not os.read(0, 1)):
            return shut_down(child)
    return child.returncode


def shut_down(child: subprocess.Popen[bytes]) -> int:
    """Stop the server: fast, then immediately (the next start recovers), then by SIGKILL."""
    for number, patience in ((signal.SIGINT, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
        child.send_signal(number)
        try:
            return child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
