"""`rowcast dev`: starts a database, the SQL, policies, channels and a bridge.

The parts start in the order in which they are needed, and stop in reverse order, also after a
failed or interrupted start.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from rowcast.bridge.app import serve
from rowcast.config import Settings
from rowcast.errors import ConfigError
from rowcast.files import policy_files
from rowcast.install.migrate import apply_policy_file
from rowcast.postgres.connect import connect

from . import server as embedded
from .database import (
    Urls,
    add_channels,
    drop_open_policies,
    has_channels,
    is_free,
    policies_written,
    start_own,
    use_existing,
)
from .state import DevState, Keys, Running, announced

__all__ = ["Options", "Report", "dev"]

CHANNELS = (
    ("chat:*", "Chat rooms, one channel each: chat:room1"),
    ("order:*", "Events of one order: order:123"),
    ("user:*:notifications", "Notifications for one user: user:123:notifications"),
    ("document:*", "Presence and changes of one document: document:42"),
    ("global", "Messages for all clients"),
)

LOOPBACK = ("127.0.0.0/8", "::1/128")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command line; None if not given."""

    port: int | None = None
    data: Path | None = None
    ephemeral: bool = False
    policies: str | None = None
    database_url: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The running parts, to be printed for the developer."""

    running: Running
    home: Path
    embedded: bool
    ephemeral: bool
    policies: str
    hidden: str | None  # the reason why other commands cannot find it


def dev(
    options: Options,
    *,
    ready: Callable[[Report], None],
    tell: Tell,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Run everything until SIGINT or SIGTERM, then stop it and return.

    Args:
        options: from the command line.
        ready: called once clients can connect.
        tell: called with a line of text for each step.
        env: settings; the database URLs among them are replaced.

    Raises:
        RowcastError: a part cannot start; the parts started before have been stopped again.
    """
    settings = Settings.from_env(env)
    if options.port is not None:
        settings = dataclasses.replace(settings, port=options.port)
    _refuse_taken_port(settings)
    _policy_paths(options.policies or "")  # refuses a missing file before anything starts
    with _stoppable(), ExitStack() as stack:
        try:
            _start_and_serve(options, settings, ready, tell, env, stack)
        except KeyboardInterrupt:
            tell("stopped")
        finally:
            _ignore_signals()  # an interrupt must not leave parts running


def _start_and_serve(
    options: Options,
    settings: Settings,
    ready: Callable[[Report], None],
    tell: Tell,
    env: Mapping[str, str],
    stack: ExitStack,
) -> None:
    home = _home(options, env, stack)
    state = DevState.load(home)
    if options.database_url:
        urls = use_existing(options.database_url, env, tell)
    else:
        urls = start_own(home, state, stack, tell, durable=not options.ephemeral)
    policies = _prepare(urls.owner, options, state, tell)
    keys = state.keys(settings)

    def started(url: str) -> None:
        running = _running(url, urls, keys)
        hidden = stack.enter_context(announced(running, env))
        own = not options.database_url
        ready(Report(running, home, own, options.ephemeral, policies, hidden))

    # Developers run the webhook receiver on this machine, too.
    reachable = settings.webhook_allow_cidrs or LOOPBACK
    tell(f"webhooks may also reach {', '.join(reachable)} (ROWCAST_WEBHOOK_ALLOW_CIDRS)")
    settings = dataclasses.replace(
        settings,
        database_url=urls.bridge,
        caller_url=urls.caller,
        listen_url="",
        jwt_secret=keys.jwt_secret,
        webhook_allow_cidrs=reachable,
    )
    asyncio.run(serve(settings, ready=started))


def _prepare(url: str, options: Options, state: DevState, tell: Tell) -> str:
    """Apply policies and create demo channels; return a summary of the policies.

    The defaults apply only at the first start of an embedded server. Later changes of a team stay,
    and an existing database is opened only on request.
    """
    first = not options.database_url and not state.prepared
    chosen = options.policies or ("open" if first else "")
    for path in _policy_paths(chosen):
        apply_policy_file(url, path, on_event=tell)
        tell(f"policies applied: {path}")
    with connect(url) as connection:
        if chosen not in ("", "open"):
            drop_open_policies(
                connection
            )  # permissive policies are combined with OR, so these would allow everything
        if first or (chosen == "open" and not has_channels(connection)):
            add_channels(connection, CHANNELS)
            tell("demo channels: " + ", ".join(pattern for pattern, _ in CHANNELS))
        names = policies_written(connection)
    state.prepared = True
    state.save()
    if not names:
        return "none: all clients are denied (write policies, or use --policies open)"
    if any(name.startswith("open_") for name in names):
        return (
            "open: every client with a key may subscribe and publish everywhere (policies/open.sql)"
        )
    return ", ".join(names)


def _policy_paths(chosen: str) -> list[Path]:
    if chosen in ("", "none"):
        return []
    recipes = {path.stem: path for path in policy_files()}
    if chosen in recipes:
        return [recipes[chosen]]
    path = Path(chosen)
    if path.is_dir():
        return sorted(path.glob("*.sql"))
    if not path.is_file():
        raise ConfigError(
            f"--policies {chosen}: the file does not exist; use a file of CREATE POLICY "
            f"statements, none, or one of the recipes: {', '.join(recipes)}."
        )
    return [path]


def _home(options: Options, env: Mapping[str, str], stack: ExitStack) -> Path:
    if options.ephemeral:
        scratch = Path(tempfile.mkdtemp(prefix="rowcast-dev-"))
        stack.callback(shutil.rmtree, scratch)
        scratch.chmod(
            0o711
        )  # under root the server runs as another user, which must reach its directory
        home = scratch / "data"
    elif options.data is not None:
        home = options.data.absolute()
    elif options.database_url:
        mark = sha256(options.database_url.encode()).hexdigest()[:12]
        home = embedded.default_data_dir(env).parent / f"external-{mark}"
    else:
        home = embedded.default_data_dir(env)
    if options.database_url:
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise ConfigError(
                f"{home} cannot be created ({problem.strerror}); choose another --data."
            ) from problem
    return home


def _running(url: str, urls: Urls, keys: Keys) -> Running:
    return Running(
        url=url,
        database_url=urls.owner,
        anon_key=keys.anon_key,
        admin_key=keys.admin_key,
        jwt_secret=keys.jwt_secret,
        pid=os.getpid(),
        bridge_url=urls.bridge,
        caller_url=urls.caller,
    )


def _refuse_taken_port(settings: Settings) -> None:
    # The bridge would refuse it too, but only after a server was started.
    if settings.port and not is_free(settings.host, settings.port):
        raise ConfigError(
            f"Port {settings.port} on {settings.host} is in use: stop its program, or choose "
            "another with --port (0 chooses a free one)."
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP, of a closed terminal, end a start as Ctrl-C does."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in {**before, signal.SIGINT: signal.default_int_handler}.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
