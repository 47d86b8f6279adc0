"""`rowcast token`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from rowcast.config import MINIMUM_SECRET, Settings
from rowcast.errors import UsageError

from .options import Commands, command, secret

__all__ = ["add"]

ABOUT = """\
Signs with HS256. The key is the UTF-8 bytes of --secret, of ROWCAST_JWT_SECRET, or of the secret
of a running `rowcast dev`. Only the token goes to standard output.

A value of --claim that is JSON is read as JSON: level=3 is a number, level='"3"' a string.

example:
  rowcast token --sub alice --exp 30d --claim org=acme --claim roles='["editor"]'
"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "token", _run, "Create a token for a client.", ABOUT)
    parser.add_argument(
        "--role", help="role claim; by default authenticated with --sub, otherwise anon"
    )
    parser.add_argument("--sub", help="id of the user: auth.user_id() in policies")
    parser.add_argument(
        "--exp",
        default="1h",
        metavar="TIME",
        help="expiry: a span (90s, 15m, 1h, 30d), epoch seconds, or an ISO time; 1h by default",
    )
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further claim; may be repeated",
    )
    parser.add_argument("--secret", help="sign with this instead of ROWCAST_JWT_SECRET")


def _run(args: argparse.Namespace) -> int:
    from rowcast import tokens

    settings = Settings.from_env(os.environ)
    role = args.role if args.role is not None else ("anon" if args.sub is None else "authenticated")
    if not role:
        raise UsageError("--role is empty: name a caller role, such as authenticated.")
    key = secret(args)
    issued = int(time.time())
    claims: dict[str, Any] = {"role": role}
    if args.sub is not None:
        claims["sub"] = args.sub
    claims |= {"iat": issued, "exp": tokens.parse_expiry(args.exp)}
    # claims that the bridge of this environment requires of every token
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    claims |= tokens.parse_claims(args.claim)
    token = tokens.sign(key, claims)
    if tokens.is_weak(key):
        _warn(f"the secret has fewer than {MINIMUM_SECRET} bytes: a bridge will refuse it.")
    if role not in (*tokens.CALLER_ROLES, *tokens.ADMIN_ROLES):
        _warn(
            f"a bridge takes tokens of {', '.join(tokens.CALLER_ROLES)} and, to administer, "
            f"{', '.join(tokens.ADMIN_ROLES)}; {role} only where caller_roles or admin_roles of "
            "the table rowcast.settings name it."
        )
    if claims["exp"] <= issued:
        _warn("this token has already expired.")
    print(token)
    return 0


def _warn(text: str) -> None:
    print(f"rowcast: warning: {text}", file=sys.stderr)
