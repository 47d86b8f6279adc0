"""Why a database cannot be reached, in one sentence that says what to do about it.

Drivers and servers name the cause in words only: libpq keeps no SQLSTATE of a failed connect. What
is recognized here gets a sentence of its own, anything else is told as it came.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Unreachable", "explain"]

LOGINS = {
    "rowcast_bridge": "ROWCAST_BRIDGE_PASSWORD",
    "rowcast_caller": "ROWCAST_CALLER_PASSWORD",
}
FORM = "write it like postgresql://user:password@host:5432/database"


class Unreachable(NamedTuple):
    """What is the matter.

    Args:
        sentence: for whoever named the database.
        passing: whether it may be otherwise in a moment, without anybody changing a setting.
    """

    sentence: str
    passing: bool


class _Target(NamedTuple):
    server: str
    user: str
    database: str


# (what is recognized, whether it may pass, what is the matter, what to do); the first one counts.
CAUSES: tuple[tuple[str, bool, str, str], ...] = (
    (
        r"password authentication failed|no password supplied|password is empty|fe_sendauth",
        False,
        'the server does not take the password of "{user}"',
        "check user and password in {named}",
    ),
    (
        r'database ".*" does not exist',
        False,
        'there is no database "{database}" at {server}',
        "create it, or check the name at the end of {named}",
    ),
    (
        r'role ".*" does not exist',
        False,
        'there is no role "{user}" at {server}',
        "check the user in {named}",
    ),
    (
        r'role ".*" is not permitted to log in',
        False,
        'the role "{user}" may not log in',
        "name another user in {named}",
    ),
    (
        r"pg_hba\.conf.*SSL encryption",  # with TLS; that it was also tried without says nothing
        False,
        '{server} does not let "{user}" in from here',
        "allow it in pg_hba.conf of the server, or check {named}",
    ),
    (
        r"pg_hba\.conf.*no encryption|requires? (an )?(SSL|TLS)|(SSL|TLS) is required",
        False,
        '{server} does not let "{user}" in without TLS',
        "add sslmode=require to {named}, or allow it in pg_hba.conf of the server",
    ),
    (
        r"does not support (SSL|TLS)|rejected SSL upgrade",
        False,
        "{server} has no TLS, and {named} demands it",
        "switch on ssl there, or take sslmode away where the way to it can be trusted",
    ),
    (
        r"certificate verify failed|certificate file|server certificate|CERTIFICATE_VERIFY_FAILED",
        False,
        "the certificate of {server} cannot be verified ({reason})",
        "name the authority with sslrootcert=FILE in {named}",
    ),
    (
        r"refused|Connect call failed",
        True,
        "nothing listens at {server}",
        "start PostgreSQL there, or check host and port in {named}",
    ),
    (
        r"resolve host|Name or service|nodename nor|No address associated|name resolution",
        True,
        "the host of {server} is not known",
        "check it in {named}",
    ),
    (
        r"No such file or directory.*|\.s\.PGSQL\.",
        True,
        "no server has its socket at {server}",
        "start PostgreSQL, or name a host in {named}",
    ),
    (
        r"time[d ]*out|No route to host|unreachable",
        True,
        "{server} does not answer",
        "check host and port in {named}, and whether a firewall is between",
    ),
    (
        r"too many (clients|connections)|connection slots",
        True,
        "{server} has no connection left",
        "end some, or raise max_connections",
    ),
)


def explain(problem: BaseException, url: str, named: str = "the connection URL") -> Unreachable:
    """Say why a connection failed.

    Args:
        problem: what the driver raised, psycopg or asyncpg.
        url: what was to be reached; no part of it that may be secret is repeated.
        named: how the user named it: a variable.
    """
    said = " ".join(str(problem).split()) or type(problem).__name__
    # asyncpg ends a password at a "#" or a "?", and quotes what follows the ":" as no port.
    target = "" if type(problem) is ValueError else _target(url, said)
    if isinstance(target, str):
        return Unreachable(
            f"{named[:1].upper()}{named[1:]} cannot be read{target}: {FORM}, with %40 for an @, "
            "%2F for a /, %23 for a # and %3F for a ? in the password.",
            False,
        )
    if isinstance(problem, TimeoutError):
        said = f"timed out: {said}"
    if isinstance(problem, FileNotFoundError) and "sslrootcert=" in url:
        said = f"certificate file: {said}"  # asyncpg says the same of a missing socket
    for pattern, passing, cause, remedy in CAUSES:
        if re.search(pattern, said):
            told = f"{cause}; {remedy}".format(
                **target._asdict(), named=named, reason=said.rstrip(".")
            )
            if target.user in LOGINS and "password" in cause:
                told += (
                    f", or give it this one: set {LOGINS[target.user]} and run `rowcast migrate`"
                )
            elif target.user in LOGINS and "no role" in cause:
                told += ", or run `rowcast migrate`, which makes it"
            return Unreachable(f"The database cannot be reached: {told}.", passing)
    return Unreachable(
        f"The database cannot be used: {said.rstrip('.')}; check {named}.",
        not isinstance(problem, ValueError),  # what a driver cannot even send
    )


def _target(url: str, said: str) -> _Target | str:
    """Take the URL apart, or say why that cannot be done.

    A driver would quote the place where it is wrong, which may be in the password.
    """
    from psycopg import Error, conninfo  # only here: a bridge that is well needs no second driver

    try:
        parts = conninfo.conninfo_to_dict(url)
    except Error as error:
        unknown = re.search(r'invalid URI query parameter: "\w+"', str(error))
        return f" ({unknown[0]})" if unknown else ""
    host, port = str(parts.get("host") or ""), str(parts.get("port") or 5432)
    if "@" in host or not re.fullmatch(r"[\d,]*", port):
        return ""  # a password with an @ or a / in it: what follows is taken for the rest
    user = str(parts.get("user") or "")
    socket = re.search(r'on socket "([^"]+)"', said)
    server = socket[1] if socket else f"{host or 'localhost'}:{port}"
    return _Target(server, user, str(parts.get("dbname") or user))
