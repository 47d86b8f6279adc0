"""Options that several commands share, and the database or bridge that they refer to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, TypeAlias

from rowcast.errors import ConfigError, UsageError

__all__ = [
    "Commands",
    "add_database_url",
    "bridge_target",
    "command",
    "database_url",
    "port",
    "secret",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


def command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    about: str,
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: the group to add it to.
        name: the name of the command.
        run: executes the command and returns the exit code.
        summary: one line for the list of commands, and the first line of ``--help``.
        about: the rest of ``--help``; keeps its line breaks and ends with an example.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_database_url(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add ``--database-url``; `whose` describes the login that it needs."""
    parser.add_argument("--database-url", metavar="URL", help=f"connection URL of {whose}")


def port(text: str) -> int:
    """Parse a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use 0 to 65535")
    return int(text)


def database_url(args: argparse.Namespace, *variables: str) -> str:
    """Return the URL of the option, of the first variable that is set, or of `rowcast dev`.

    Raises:
        ConfigError: none of these names a database.
    """
    for url in (args.database_url, *(os.environ.get(name) for name in variables)):
        if url:
            return str(url)
    running = _dev()
    if running is not None:
        return str(running.database_url)
    raise ConfigError(
        f"No database is given: use --database-url, set {variables[0]}, or start `rowcast dev`."
    )


def bridge_target(args: argparse.Namespace) -> tuple[str, str]:
    """Return URL and token of a bridge: those given, or those of a running `rowcast dev`.

    Raises:
        ConfigError: one of them is missing.
    """
    url = args.url or os.environ.get("ROWCAST_URL") or ""
    token = args.token or os.environ.get("ROWCAST_TOKEN") or ""
    running = None if url and token else _dev()
    if not url and running is not None:
        url = running.url
    if not url:
        raise ConfigError(
            "This user does not run `rowcast dev`: start it, or give --url and --token."
        )
    if not url.startswith(("http://", "https://")):
        raise UsageError(
            f"{url!r} is not the URL of a bridge: write it like http://127.0.0.1:8080."
        )
    # The key of one bridge is not valid at another.
    if not token and running is not None and url.rstrip("/") == running.url:
        token = running.anon_key
    if not token:
        raise ConfigError(f"{url} needs a token: give --token, or set ROWCAST_TOKEN.")
    return url, token


def secret(args: argparse.Namespace) -> str:
    """Return the secret of the option, of the environment, or of `rowcast dev`; "" if none."""
    found = args.secret or os.environ.get("ROWCAST_JWT_SECRET")
    if found:
        return str(found)
    running = _dev()
    return running.jwt_secret if running is not None else ""


def _dev() -> Any:
    from rowcast.dev.state import current

    return current()
