"""Options that sub-commands of `rowcast policy` share: the caller, the request, the database."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rowcast.cli.options import add_database_url, database_url
from rowcast.errors import UsageError

if TYPE_CHECKING:
    from rowcast.policy.database import AccessRequest
    from rowcast.policy.personas import Persona

__all__ = ["add_caller", "add_request", "persona_of", "request_of", "text_or_file", "workbench_url"]

PERSONAS = "file of [personas.NAME] tables (policies/personas.toml by default)"


def add_caller(parser: argparse.ArgumentParser) -> None:
    """Add the options for the caller and the database."""
    parser.add_argument(
        "--as", dest="persona", metavar="NAME", help="name of a persona in the file"
    )
    parser.add_argument("--personas", metavar="FILE", type=Path, help=PERSONAS)
    parser.add_argument("--claims", metavar="JSON", help="claims of a token, instead of a persona")
    parser.add_argument("--role", help="caller role; by default that of the claims")
    add_database_url(parser, "the migrating role, instead of ROWCAST_MIGRATE_URL")


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a request and its caller."""
    parser.add_argument("action", choices=("subscribe", "publish"))
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument(
        "event", metavar="EVENT", nargs="?", help="event of a publish; message by default"
    )
    parser.add_argument(
        "--payload",
        metavar="JSON",
        default="{}",
        help="payload of a publish, or @FILE; {} by default",
    )
    parser.add_argument(
        "--type", choices=("message", "broadcast"), default="message", help="message by default"
    )
    add_caller(parser)


def persona_of(args: argparse.Namespace) -> Persona:
    """Return the persona that the arguments name or describe.

    Raises:
        UsageError: they do not describe exactly one persona.
    """
    from rowcast.policy import personas

    if args.persona and (args.claims or args.role):
        raise UsageError("Give either --as, or --claims and --role, but not both.")
    if args.persona:
        path = args.personas or personas.DEFAULT_FILE
        known = personas.read_personas(path) if args.personas or path.exists() else {}
        known = known or personas.personas_of({}, path)
        if args.persona not in known:
            raise UsageError(f"Persona {args.persona} is not in {path}; use {', '.join(known)}.")
        return known[args.persona]
    if not (args.claims or args.role):
        raise UsageError("Give the caller: --as NAME, --claims JSON, or --role ROLE.")
    claims = _json(args.claims or "{}", "--claims")
    if not isinstance(claims, dict):
        raise UsageError('--claims must be a JSON object, like {"sub": "alice"}.')
    return personas.from_claims(claims, args.role)


def request_of(args: argparse.Namespace, persona: Persona) -> AccessRequest:
    """Return the request that the arguments describe.

    Raises:
        UsageError: the payload is not JSON, or a subscribe has an event.
    """
    from rowcast.policy.database import AccessRequest

    if args.action == "subscribe" and args.event:
        raise UsageError("A subscribe does not have an event: leave it out.")
    payload = text_or_file(args.payload)
    _json(payload, "--payload")
    return AccessRequest(
        args.action,
        persona.role,
        persona.text,
        args.channel,
        args.event or "message",
        payload,
        args.type,
    )


def text_or_file(given: str) -> str:
    """Return the given text, or the content of the file that it names with @.

    Raises:
        UsageError: the file cannot be read.
    """
    if not given.startswith("@"):
        return given
    try:
        return sys.stdin.read() if given == "@-" else Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{given[1:]} cannot be read: {problem}.") from problem


def workbench_url(args: argparse.Namespace, *others: str) -> str:
    """Return the URL from --database-url, ROWCAST_MIGRATE_URL or the other variables."""
    return database_url(args, "ROWCAST_MIGRATE_URL", *others)


def _json(text: str, whose: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise UsageError(f"{whose} is not JSON: {problem}.") from problem
