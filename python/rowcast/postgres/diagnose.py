"""Turns connection errors into one sentence that says what is wrong and what to do.

Drivers and servers name the cause in words only: libpq keeps no SQLSTATE of a failed connect. A
recognized message gets a sentence of its own; any other is passed on unchanged.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import psycopg

__all__ = ["Unreachable", "connection_error", "server_sentence"]

LOGINS = {
    "rowcast_bridge": "ROWCAST_BRIDGE_PASSWORD",
    "rowcast_caller": "ROWCAST_CALLER_PASSWORD",
}
FORM = "write it like postgresql://user:password@host:5432/database"


class Unreachable(NamedTuple):
    """The reason why a connection failed.

    Args:
        sentence: what is wrong and what the operator can do.
        temporary: whether a later attempt may succeed without a changed setting.
    """

    sentence: str
    temporary: bool


class _Target(NamedTuple):
    server: str
    user: str
    database: str


# (pattern in the message, temporary, cause, remedy); the first match counts.
CAUSES: tuple[tuple[str, bool, str, str], ...] = (
    (
        r"password authentication failed|no password supplied|password is empty|fe_sendauth",
        False,
        'the server rejects the password of "{user}"',
        "check user and password in {named}",
    ),
    (
        r'database ".*" does not exist',
        False,
        'database "{database}" does not exist at {server}',
        "create it, or check the name at the end of {named}",
    ),
    (
        r'role ".*" does not exist',
        False,
        'role "{user}" does not exist at {server}',
        "check the user in {named}",
    ),
    (
        r'role ".*" is not permitted to log in',
        False,
        'role "{user}" may not log in',
        "name another user in {named}",
    ),
    (
        r"pg_hba\.conf.*SSL encryption",  # refused with TLS; the attempt without TLS is irrelevant
        False,
        '{server} does not let "{user}" connect from here',
        "allow it in pg_hba.conf of the server, or check {named}",
    ),
    (
        r"pg_hba\.conf.*no encryption|requires? (an )?(SSL|TLS)|(SSL|TLS) is required",
        False,
        '{server} does not let "{user}" connect without TLS',
        "add sslmode=require to {named}, or allow it in pg_hba.conf of the server",
    ),
    (
        r"does not support (SSL|TLS)|rejected SSL upgrade",
        False,
        "{server} has no TLS, but {named} requires it",
        "enable ssl there, or remove sslmode if the network to it is trusted",
    ),
    (
        r"certificate verify failed|certificate file|server certificate|CERTIFICATE_VERIFY_FAILED",
        False,
        "the certificate of {server} cannot be verified ({reason})",
        "name the certificate authority with sslrootcert=FILE in {named}",
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
        "the host name of {server} does not resolve",
        "check the host in {named}",
    ),
    (
        r"No such file or directory.*|\.s\.PGSQL\.",
        True,
        "no server has a socket at {server}",
        "start PostgreSQL, or name a host in {named}",
    ),
    (
        r"time[d ]*out|No route to host|unreachable",
        True,
        "{server} does not answer",
        "check host and port in {named}, and the firewalls in between",
    ),
    (
        r"too many (clients|connections)|connection slots",
        True,
        "{server} has no connection left",
        "close some, or raise max_connections",
    ),
)


def connection_error(
    error: BaseException, url: str, named: str = "the connection URL"
) -> Unreachable:
    """Explain why a connection failed.

    Args:
        error: raised by psycopg or asyncpg.
        url: the connection URL; the sentence repeats no part of it that may be secret.
        named: where the operator set the URL, such as the name of a variable.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    # asyncpg ends a password at a "#" or a "?", and quotes the rest of it as an invalid port.
    target = "" if type(error) is ValueError else _target(url, said)
    if isinstance(target, str):
        return Unreachable(
            f"{named[:1].upper()}{named[1:]} cannot be read{target}: {FORM}, with %40 for an @, "
            "%2F for a /, %23 for a # and %3F for a ? in the password.",
            False,
        )
    if isinstance(error, TimeoutError):
        said = f"timed out: {said}"
    if isinstance(error, FileNotFoundError) and "sslrootcert=" in url:
        said = f"certificate file: {said}"  # asyncpg raises the same for a missing socket
    for pattern, temporary, cause, remedy in CAUSES:
        if re.search(pattern, said):
            told = f"{cause}; {remedy}".format(
                **target._asdict(), named=named, reason=said.rstrip(".")
            )
            if target.user in LOGINS and "password" in cause:
                told += f", or set {LOGINS[target.user]} and run `rowcast migrate` to change it"
            elif target.user in LOGINS and cause.startswith("role") and "exist" in cause:
                told += ", or run `rowcast migrate`, which creates it"
            return Unreachable(f"The database cannot be reached: {told}.", temporary)
    return Unreachable(
        f"The database cannot be used: {said.rstrip('.')}; check {named}.",
        not isinstance(error, ValueError),  # raised before anything is sent
    )


def server_sentence(error: psycopg.Error) -> str:
    """Return the server's message and hint in one line."""
    message = " ".join(str(error.diag.message_primary or error).split()).rstrip(".")
    hint = error.diag.message_hint
    return f"{message[:1].upper()}{message[1:]}." + (f" {hint}" if hint else "")


def _target(url: str, said: str) -> _Target | str:
    """Parse the URL, or return what may be said about why it does not parse.

    A driver would quote the place of the mistake, which may be in the password.
    """
    # Imported here because a bridge that connects does not need a second driver.
    from psycopg import Error, conninfo

    try:
        parts = conninfo.conninfo_to_dict(url)
    except Error as error:
        unknown = re.search(r'invalid URI query parameter: "\w+"', str(error))
        return f" ({unknown[0]})" if unknown else ""
    host, port = str(parts.get("host") or ""), str(parts.get("port") or 5432)
    if "@" in host or not re.fullmatch(r"[\d,]*", port):
        return ""  # the password contains an @ or a /, and its rest was read as the host
    user = str(parts.get("user") or "")
    socket = re.search(r'on socket "([^"]+)"', said)
    server = socket[1] if socket else f"{host or 'localhost'}:{port}"
    return _Target(server, user, str(parts.get("dbname") or user))
