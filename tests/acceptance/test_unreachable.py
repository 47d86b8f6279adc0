"""Unreachable databases: every command and the bridge report one sentence that helps."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest

from rowcast.postgres.diagnose import connection_error
from support import pg
from support.bridge_process import SECRET
from support.command import environment, rowcast, started
from support.waiting import eventually

pytestmark = pytest.mark.acceptance

PASSWORD = "not-to-be-told"
COMMANDS = [
    ("status",),
    ("migrate",),
    ("migrate", "--dry-run"),
    ("publish", "chat:1", "new"),
    ("webhooks", "list"),
    ("policy", "can", "subscribe", "chat:1", "--role", "anon"),
    ("policy", "lint"),
    ("dev", "--port", "0"),
]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path)


@pytest.fixture
def wrong(own_server: pg.OwnServer) -> dict[str, str]:
    """Return cause → a URL that has it."""
    asked = "host all rowcast_bridge all scram-sha-256"
    with psycopg.connect(own_server.url(), autocommit=True) as admin:
        admin.execute("create role encrypted login")
        [(file,)] = admin.execute("show hba_file").fetchall()
        hba = Path(file)
        hba.write_text(f"hostnossl all encrypted all reject\n{asked}\n{hba.read_text()}")
        admin.execute("select pg_reload_conf()")
    eventually(lambda: refuses(own_server.url(user="encrypted")), what="the rules are read")
    good = urlsplit(own_server.url())
    own = f"postgresql://{good.netloc}"
    at = f"{good.hostname}:{good.port}"
    return {
        "port": f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/app",
        "host": f"postgresql://postgres:{PASSWORD}@nosuch.invalid/app",
        "password": f"postgresql://rowcast_bridge:{PASSWORD}@{at}/postgres",
        "database": f"{own}/appp",
        "tls wanted": f"postgresql://encrypted:{PASSWORD}@{at}/postgres",
        "no tls": f"{own}/postgres?sslmode=require",
        "form": f"postgresql://postgres:{PASSWORD}/x@{at}/app",
        "kind": f"mysql://root:{PASSWORD}@{at}/app",
        "option": f"postgresql://postgres:{PASSWORD}@{at}/app?colour=red",
    }


def refuses(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return True
    return False


SENTENCES = {
    "port": ["nothing listens at 127.0.0.1:1", "check host and port"],
    "host": ["nosuch.invalid:5432 does not resolve"],
    "password": ['the password of "rowcast_bridge"', "ROWCAST_BRIDGE_PASSWORD", "rowcast migrate"],
    "database": ['database "appp" does not exist', "create it"],
    "tls wanted": ["without TLS", "sslmode=require"],
    "no tls": ["has no TLS", "sslmode"],
    "form": ["cannot be read", "postgresql://user:password@host:5432/database", "%2F"],
    "kind": ["postgresql://"],
    "option": ["cannot be read", "colour"],
}
# Causes that may pass: a bridge waits for the server.
PASSING = ("port", "host")


def test_every_command_says_what_is_wrong_and_what_to_do(bare: dict[str, str]) -> None:
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/app"
    for command in COMMANDS:
        done = rowcast(*command, "--database-url", url, env=bare)
        assert done.returncode == 1, done
        assert done.stderr.startswith("rowcast: The database cannot be reached: nothing listens")
        assert done.stderr.count("\n") == 1
        assert PASSWORD not in done.stderr
    done = rowcast("doctor", "--database-url", url, env=bare)
    assert done.returncode == 1
    assert "fail   database: The database cannot be reached: nothing listens" in done.stdout


def test_every_cause_has_its_own_sentence(wrong: dict[str, str], bare: dict[str, str]) -> None:
    assert wrong.keys() == SENTENCES.keys()
    for cause, url in wrong.items():
        done = rowcast("status", "--database-url", url, env=bare)
        assert done.returncode == 1, done
        assert done.stderr.count("\n") == 1, done.stderr
        assert [word for word in SENTENCES[cause] if word not in done.stderr] == [], done.stderr
        assert PASSWORD not in done.stderr


def test_a_bridge_waits_or_ends_by_the_cause(wrong: dict[str, str], bare: dict[str, str]) -> None:
    """It waits for a server that may start, and ends where only a changed setting helps."""
    for cause, url in wrong.items():
        env = {
            **bare,
            "ROWCAST_DATABASE_URL": url,
            "ROWCAST_CALLER_URL": url,
            "ROWCAST_JWT_SECRET": SECRET,
        }
        with started("serve", "--port", "0", env=env) as command:
            if cause in PASSING:
                command.says("event=feed_lost")
                assert command.stop() == 0
            else:
                assert command.process.wait(30) == 1, cause
            said = command.log
        assert "ROWCAST_DATABASE_URL" in said, cause
        assert [word for word in SENTENCES[cause] if word not in said] == [], said
        assert PASSWORD not in said
        assert "Traceback" not in said, said


@pytest.mark.parametrize("sign", ["#", "?", "[", "]", "/", "@", "\u2100", ":", "%zz"])
def test_an_unencoded_password_is_never_printed(sign: str, bare: dict[str, str]) -> None:
    """URL parsers quote the part that they cannot read."""
    url = f"postgresql://postgres:{PASSWORD}{sign}{PASSWORD}@127.0.0.1:1/app"
    names = ("ROWCAST_DATABASE_URL", "ROWCAST_CALLER_URL", "ROWCAST_MIGRATE_URL")
    env = {**bare, **dict.fromkeys(names, url), "ROWCAST_JWT_SECRET": SECRET}
    dev = ("dev", "--port", "0", "--database-url", url)
    for arguments in (("status",), ("migrate",), ("doctor",), ("config",), dev):
        done = rowcast(*arguments, env=env)
        said = done.stdout + done.stderr
        assert PASSWORD not in said, arguments
        assert "Traceback" not in said, said
    with started("serve", "--port", "0", env=env) as command:
        if sign == ":":
            command.says("event=feed_lost")
        else:
            assert command.process.wait(30) == 1
            assert "ROWCAST_DATABASE_URL cannot be read" in command.log
            assert "%23 for a #" in command.log
        assert PASSWORD not in command.log
        assert "Traceback" not in command.log


def test_the_failing_login_is_named(database: pg.Database, bare: dict[str, str]) -> None:
    env = {
        **bare,
        "ROWCAST_DATABASE_URL": database.bridge_url,
        "ROWCAST_CALLER_URL": f"{database.caller_url}_gone",
        "ROWCAST_JWT_SECRET": SECRET,
    }
    with started("serve", "--port", "0", env=env) as command:
        assert command.process.wait(30) == 1
        assert "check the name at the end of ROWCAST_CALLER_URL." in command.log


@pytest.mark.parametrize(
    ("said", "told", "temporary"),
    [
        ("connection timeout expired", "does not answer", True),
        ("FATAL: sorry, too many clients already", "has no connection left", True),
        ("FATAL: remaining connection slots are reserved", "has no connection left", True),
        ('FATAL: role "ann" does not exist', 'role "ann" does not exist at', False),
        ('FATAL: role "ann" is not permitted to log in', "may not log in", False),
        ("certificate verify failed: self-signed", "sslrootcert", False),
        ("no pg_hba.conf entry …, SSL encryption … entry …, no encryption", "from here", False),
        ("something new", "cannot be used: something new; check the connection URL", True),
    ],
)
def test_messages_of_other_servers_are_recognized(said: str, told: str, temporary: bool) -> None:
    found = connection_error(OSError(said), "postgresql://ann:x@db/app")
    assert told in found.sentence
    assert found.temporary is temporary


async def test_a_missing_certificate_file_is_not_taken_for_a_socket() -> None:
    url = "postgresql://ann:x@127.0.0.1/app?sslmode=verify-full&sslrootcert=/nosuch.pem"
    with pytest.raises(FileNotFoundError) as caught:
        await asyncpg.connect(url)
    assert "sslrootcert=FILE" in connection_error(caught.value, url).sentence
