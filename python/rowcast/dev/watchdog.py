"""The parent of an embedded PostgreSQL: it lives as long as both its child and its own parent.

Started as a script by `embedded.start`, never imported there: it must load fast and must work
where the virtual environment cannot be imported. Why a process of its own, when Linux can send
a signal at the death of a parent? Because that signal comes when the *thread* that forked ends,
so a server started from a thread pool would stop at random, and because only Linux has it. Here
the main thread forks, so the signal is a sound second line: it covers a kill of this keeper.

The rowcast process holds the other end of our standard input. The end of that stream, or a new
parent, means that it is gone, however it died; the server is then shut down in order.
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
    """Run `command` as `uid` (-1: as ourselves), report its pid, and outlive neither side."""
    parent, keeper = os.getppid(), os.getpid()
    orders: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        orders.append(number)

    # Signals become bytes on a pipe, so one select waits for all there is to wait for.
    waken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_keeper() -> None:
        # Runs after the change of uid, which would clear the request, and before the exec.
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != keeper:
                os._exit(1)

    identity = {} if uid < 0 else {"user": uid, "group": uid, "extra_groups": []}
    child: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        preexec_fn=die_with_keeper,  # one thread here: nothing can deadlock
        **identity,  # type: ignore[call-overload]
    )
    os.write(1, b"%d\n" % child.pid)
    os.close(1)
    while child.poll() is None:
        # A fork of rowcast may hold the stream open after its death: hence also the parent.
        ready, _, _ = select.select([0, waken], [], [], 1.0)
        if waken in ready:
            os.read(waken, 4096)
        if orders or os.getppid() != parent or (0 in ready and not os.read(0, 1)):
            return shut_down(child)
    return child.returncode


def shut_down(child: subprocess.Popen[bytes]) -> int:
    """Stop the server: fast, then at once (it recovers at its next start), then by force."""
    for number, patience in ((signal.SIGINT, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
        child.send_signal(number)
        try:
            return child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
