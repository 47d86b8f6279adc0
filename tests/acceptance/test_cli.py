"""The commands: output, refusals and exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jwt
import psycopg
import pytest

from rowcast import __version__
from rowcast.install.script import install_script, roles_script
from rowcast.tokens import ADMIN_ROLES, CALLER_ROLES
from support import pg
from support.bridge_process import SECRET, open_channels, token
from support.command import environment, rowcast, started

pytestmark = pytest.mark.acceptance

COMMANDS = [
    "dev", "migrate", "serve", "token", "publish", "listen", "status", "doctor", "config", "sql",
    "policy",
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def env(home: Path, database: pg.Database) -> dict[str, str]:
    """Return the settings of a bridge on `database`, with the open recipe and two channels."""
    open_channels(database, "chat:*", "order:*")
    return environment(
        home,
        database_url=database.bridge_url,
        caller_url=database.caller_url,
        jwt_secret=SECRET,
        port=0,
    )


@pytest.fixture
def bare(home: Path) -> dict[str, str]:
    """Return an environment without settings."""
    return environment(home)


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    """Check that a command ended with one sentence that contains these words."""
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("rowcast: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# The command itself


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_an_example(command: str, bare: dict[str, str]) -> None:
    done = rowcast(command, "--help", env=bare)
    assert done.returncode == 0
    assert "example:" in done.stdout
    assert f"rowcast {command}" in done.stdout.split("example:")[1]


def test_help_lists_every_command(
    bare: dict[str, str],
) -> None:
    """`--version` prints that of the package."""
    listed = rowcast("--help", env=bare).stdout
    assert [name for name in COMMANDS if f"    {name} " not in listed] == []
    assert rowcast("--version", env=bare).stdout == f"rowcast {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((), "rowcast"),
        (("dance",), "rowcast"),
        (("publish",), "rowcast publish"),
        (("serve", "--port", "70000"), "rowcast serve"),
        (("serve", "--workers", "0"), "rowcast serve"),
        (("config", "--jsn"), "rowcast config"),
        (("webhooks",), "rowcast webhooks"),
        (("webhooks", "list", "--jsn"), "rowcast webhooks list"),
        (("policy", "can", "subscribe", "chat:1", "--ass", "alice"), "rowcast policy can"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_where_to_read_on(
    arguments: tuple[str, ...], command: str, bare: dict[str, str]
) -> None:
    done = rowcast(*arguments, env=bare)
    assert done.returncode == 2
    assert f"usage: {command} [-h]" in done.stderr
    assert f"`{command} --help`" in done.stderr
    assert rowcast(*command.split()[1:], "--help", env=bare).returncode == 0


def test_sql_since_refuses_unknown_migrations(bare: dict[str, str]) -> None:
    for since in ("-1", "999"):
        refused(rowcast("sql", f"--since={since}", env=bare), since, "newest", code=2)


def test_a_closed_pipe_gives_no_traceback(bare: dict[str, str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with started("sql", env=bare, stdout=theirs) as command:
        os.close(theirs)
        assert command.process.wait(30) == 1
        assert command.log == ""


# token


def test_a_token_carries_what_was_asked_for(bare: dict[str, str]) -> None:
    done = rowcast(
        "token", "--sub", "alice", "--exp", "30d", "--claim", "org=acme", "--claim", "level=3",
        "--claim", 'roles=["editor"]', "--claim", "note=a=b", "--secret", SECRET, env=bare,
    )  # fmt: skip
    assert done.stderr == ""
    claims = jwt.decode(done.stdout.strip(), SECRET, ["HS256"])
    assert claims.pop("exp") - claims.pop("iat") == 30 * 86400
    assert claims == {
        "role": "authenticated",
        "sub": "alice",
        "org": "acme",
        "level": 3,
        "roles": ["editor"],
        "note": "a=b",
    }


def test_a_token_without_sub_is_anonymous_for_an_hour(bare: dict[str, str]) -> None:
    done = rowcast("token", env={**bare, "ROWCAST_JWT_SECRET": SECRET})
    claims = jwt.decode(done.stdout.strip(), SECRET, ["HS256"])
    assert claims["role"] == "anon"
    assert "sub" not in claims
    assert claims["exp"] - time.time() == pytest.approx(3600, abs=30)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("2w", 1_209_600)],
)
def test_a_span_is_counted_from_now(text: str, seconds: int, bare: dict[str, str]) -> None:
    done = rowcast("token", "--exp", text, "--secret", SECRET, env=bare)
    claims = jwt.decode(done.stdout.strip(), SECRET, ["HS256"])
    assert claims["exp"] - time.time() == pytest.approx(seconds, abs=30)


@pytest.mark.parametrize("text", ["2030-01-31T12:00:00Z", "1896091200", "2030-01-31T13:00+01:00"])
def test_a_moment_is_taken_as_it_is(text: str, bare: dict[str, str]) -> None:
    done = rowcast("token", "--exp", text, "--secret", SECRET, env=bare)
    assert jwt.decode(done.stdout.strip(), SECRET, ["HS256"])["exp"] == 1896091200


def test_a_token_names_the_audience_that_the_bridge_demands(bare: dict[str, str]) -> None:
    demands = {"ROWCAST_JWT_AUDIENCE": "rowcast", "ROWCAST_JWT_ISSUER": "us"}
    done = rowcast("token", "--secret", SECRET, env={**bare, **demands})
    jwt.decode(done.stdout.strip(), SECRET, ["HS256"], audience="rowcast", issuer="us")


def test_a_weak_secret_and_a_past_end_are_warned_of(bare: dict[str, str]) -> None:
    done = rowcast("token", "--secret", "guess", "--exp=-1h", env=bare)
    assert done.returncode == 0
    assert done.stdout.count(".") == 2
    assert "fewer than 32 bytes" in done.stderr
    assert "already expired" in done.stderr
    assert "guess:" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--exp", "soon"], ["--exp 'soon'", "1h or 30d"]),
        (["--exp", "9999999999999"], ["--exp", "10000"]),
        (["--exp", "9999y"], ["--exp", "10000"]),
        (["--claim", "org"], ["--claim 'org'", "name=value"]),
        (["--claim", "=x"], ["name=value"]),
        (["--claim", "role=admin"], ["use --role"]),
        (["--role", ""], ["--role is empty"]),
        (["--secret", ""], ["ROWCAST_JWT_SECRET", "--secret"]),
    ],
)
def test_a_wrong_token_request_gets_one_sentence(
    arguments: list[str], words: list[str], bare: dict[str, str]
) -> None:
    secret = [] if "--secret" in arguments else ["--secret", SECRET]
    code = 1 if arguments == ["--secret", ""] else 2
    refused(rowcast("token", *arguments, *secret, env=bare), *words, code=code)


@pytest.mark.parametrize(("role", "warned"), [("postgres", True), ("rowcast_admin", False)])
def test_a_role_that_no_bridge_takes_is_warned_of(
    role: str, warned: bool, bare: dict[str, str]
) -> None:
    """Also without a database, and with one that cannot be reached."""
    nowhere = {**bare, "ROWCAST_DATABASE_URL": "postgresql://postgres@127.0.0.1:1/none"}
    for env in (bare, nowhere):
        done = rowcast("token", "--role", role, "--secret", SECRET, env=env)
        assert done.stdout.count(".") == 2
        assert ("caller_roles" in done.stderr and role in done.stderr) is warned, done.stderr


def test_known_roles_are_those_of_a_new_database(
    database: pg.Database,
) -> None:
    """`token` warns about other roles."""
    with psycopg.connect(database.url) as connection:
        query = "select caller_roles, admin_roles from rowcast.settings"
        row = connection.execute(query).fetchone()
    assert row == (list(CALLER_ROLES), list(ADMIN_ROLES))


# config


def test_an_unknown_variable_is_reported_once(env: dict[str, str]) -> None:
    wrong = {**env, "ROWCAST_JWT_SECRT": "x", "ROWCAST_COLOUR": "red"}
    ours = {"ROWCAST_URL": "x", "ROWCAST_TOKEN": "y", "ROWCAST_PORT_80_TCP": "tcp://10.0.0.1:80"}
    told = rowcast("config", env={**wrong, **ours}).stderr.splitlines()
    assert [line.split(" ")[4] for line in told] == ["ROWCAST_JWT_SECRT:", "ROWCAST_COLOUR;"]
    assert "did you mean ROWCAST_JWT_SECRET" in told[0]
    with started("serve", "--workers", "2", env=wrong) as command:
        command.line()
        assert command.stop(signal.SIGTERM) == 0
        assert command.log.count("ROWCAST_JWT_SECRT") == 1
        assert command.log.count("ROWCAST_COLOUR") == 1


def test_a_port_that_kubernetes_has_set_is_explained(bare: dict[str, str]) -> None:
    done = rowcast("config", env={**bare, "ROWCAST_PORT": "tcp://10.0.0.1:80"})
    refused(done, "ROWCAST_PORT", "enableServiceLinks")


def test_config_explains_every_setting_and_hides_secrets(env: dict[str, str]) -> None:
    shown = rowcast("config", env={**env, "ROWCAST_PORT": "9000"}).stdout
    assert "ROWCAST_PORT=9000" in shown
    assert "ROWCAST_JWT_SECRET=***" in shown
    assert SECRET not in shown
    assert all(" # " in line for line in shown.splitlines())
    listed = json.loads(rowcast("config", "--json", env=env).stdout)
    assert listed["ROWCAST_JWT_SECRET"]["value"] == "***"
    assert listed["ROWCAST_HOST"] == {"value": "127.0.0.1", "about": "Address to listen on."}
    assert len(listed) == len(shown.splitlines())
    assert "ROWCAST_POLL_MIN" not in listed
    every = json.loads(rowcast("config", "--json", "--all", env=env).stdout)
    assert every.items() > listed.items()
    assert "ROWCAST_POLL_MIN" in every


def test_a_wrong_setting_is_named(bare: dict[str, str]) -> None:
    refused(rowcast("config", env={**bare, "ROWCAST_PORT": "many"}), "ROWCAST_PORT='many'")
    refused(rowcast("serve", env={**bare, "ROWCAST_PORT": "70000"}), "ROWCAST_PORT=70000")


# migrate and sql


def test_migrate_installs_once_and_says_what_comes_next(
    empty_database: pg.Database, server: pg.Server, bare: dict[str, str]
) -> None:
    url = empty_database.url
    with pg.cluster_lock(server.url()):
        planned = rowcast("migrate", "--dry-run", "--database-url", url, env=bare)
        assert "would apply 0001_" in planned.stdout
        assert "would apply the code" in planned.stdout
        with empty_database.connect() as connection:
            known = connection.execute("select to_regnamespace('rowcast') is not null").fetchone()
        assert known == (False,)
        done = rowcast("migrate", env={**bare, "ROWCAST_MIGRATE_URL": url})
        assert done.returncode == 0, done.stderr
        again = rowcast("migrate", "--database-url", url, env=bare)
        planned = rowcast("migrate", "--dry-run", "--database-url", url, env=bare)
        repeated = rowcast("migrate", "--reapply", "--database-url", url, env=bare)
    assert "0001_settings applied" in done.stdout
    for word in (
        "rowcast_bridge",
        "rowcast_caller",
        "Without policies all clients are denied",
        "realtime_channels",
    ):
        assert word in done.stdout.split("next:")[1]
    assert again.stdout.startswith("nothing to do")
    assert planned.stdout.startswith("nothing to do")
    assert "code applied" in repeated.stdout
    assert "rowcast_bridge passwords" not in repeated.stdout


def test_a_database_must_be_named_and_answer(bare: dict[str, str]) -> None:
    refused(rowcast("migrate", env=bare), "--database-url", "ROWCAST_MIGRATE_URL")
    nowhere = "postgresql://nobody:hush@127.0.0.1:1/none"
    done = rowcast("migrate", "--database-url", nowhere, env=bare)
    refused(done, "cannot be reached")
    assert "hush" not in done.stderr
    refused(rowcast("status", "--database-url", nowhere, env=bare), "cannot be reached")
    published = rowcast("publish", "a", "b", "--database-url", nowhere, env=bare)
    refused(published, "cannot be reached")


def test_sql_prints_the_scripts(bare: dict[str, str]) -> None:
    assert rowcast("sql", env=bare).stdout == install_script()
    assert rowcast("sql", "--roles", env=bare).stdout == roles_script()
    assert "migrations/0001" not in rowcast("sql", "--since", "1", env=bare).stdout


# status and doctor


def test_status_speaks_to_people_and_programs(env: dict[str, str]) -> None:
    text = rowcast("status", env=env)
    assert text.returncode == 0
    assert "bridges asleep" in text.stdout
    assert json.loads(rowcast("status", "--json", env=env).stdout)["channels"] == 2


def test_a_database_without_rowcast_is_told_so(
    empty_database: pg.Database, bare: dict[str, str]
) -> None:
    done = rowcast("status", "--database-url", empty_database.url, env=bare)
    refused(done, empty_database.name, "rowcast migrate")


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    return {finding["subject"]: finding for finding in json.loads(done.stdout)}


def test_doctor_finds_nothing_where_all_is_well(env: dict[str, str]) -> None:
    done = rowcast("doctor", env=env)
    assert done.returncode == 0, done.stdout
    assert "fail" not in done.stdout
    for subject in ("bridge login", "caller login", "jwt secret", "clocks", "versions", "listen"):
        assert f"ok     {subject}: " in done.stdout
    assert "ok     policies: " in done.stdout


def test_doctor_says_what_is_wrong_and_what_to_do(
    env: dict[str, str], database: pg.Database
) -> None:
    wrong = {
        **env,
        "ROWCAST_DATABASE_URL": database.url,
        "ROWCAST_CALLER_URL": database.bridge_url,
        "ROWCAST_JWT_SECRET": "short",
        "ROWCAST_JWKS_URL": "http://keys.example/jwks.json",
        "ROWCAST_LISTEN_URL": "postgresql://127.0.0.1:1/none",
    }
    done = rowcast("doctor", "--json", env=wrong)
    assert done.returncode == 1
    found = findings(done)
    assert "is a superuser" in str(found["bridge login"]["finding"])
    assert "inherits" in str(found["caller login"]["finding"])
    for subject in ("bridge login", "caller login", "jwt secret", "jwks", "listen"):
        assert found[subject]["ok"] is False, subject
        assert found[subject]["advice"]
    assert "fail   jwt secret: 5 bytes\n       Set ROWCAST_JWT_SECRET" in (
        rowcast("doctor", env=wrong).stdout
    )


def test_doctor_finds_a_database_of_another_version(
    env: dict[str, str], database: pg.Database
) -> None:
    with database.connect() as connection:
        connection.execute("insert into rowcast.migration values (9999, '9999_x', '')")
    found = findings(rowcast("doctor", "--json", env=env))
    assert found["versions"]["ok"] is False
    assert "newer rowcast" in str(found["versions"]["advice"])


def test_doctor_skips_what_is_not_set(database: pg.Database, bare: dict[str, str]) -> None:
    done = rowcast("doctor", "--database-url", database.url, env=bare)
    assert "skip   caller login: ROWCAST_CALLER_URL is not set" in done.stdout
    refused(rowcast("doctor", env=bare), "ROWCAST_DATABASE_URL", "rowcast dev")


# publish


def messages(database: pg.Database) -> list[tuple[object, ...]]:
    with database.connect() as connection:
        return connection.execute(
            "select id::text, type, channel_name, event_name, payload, sender_type"
            " from public.realtime_messages order by seq"
        ).fetchall()


def test_publish_writes_one_message_and_prints_its_id(
    env: dict[str, str], database: pg.Database, home: Path
) -> None:
    payload = home / "payload.json"
    payload.write_text('{"from": "file"}')
    to = ("--database-url", database.owner_url)
    ids = [
        rowcast("publish", "chat:1", "new", *rest, *to, env=env, stdin='{"from": "stdin"}')
        for rest in (['{"a": 1}'], [f"@{payload}"], ["-"], [], ["7", "--type", "broadcast"])
    ]
    assert [done.stderr for done in ids] == [""] * 5
    kept = messages(database)
    assert [row[0] for row in kept] == [done.stdout.strip() for done in ids]
    assert [row[4] for row in kept] == [{"a": 1}, {"from": "file"}, {"from": "stdin"}, {}, 7]
    assert [row[1] for row in kept] == ["message"] * 4 + ["broadcast"]
    assert {row[5] for row in kept} == {"system"}


def test_publish_repeats_by_count_but_not_by_id(env: dict[str, str], database: pg.Database) -> None:
    here = {**env, "ROWCAST_DATABASE_URL": database.owner_url}
    done = rowcast("publish", "chat:1", "new", '{"n": 1}', "--count", "1200", env=here)
    assert done.stdout == "1200 messages published\n"
    key = str(uuid.uuid4())
    first = rowcast("publish", "chat:1", "new", "--id", key, env=here)
    again = rowcast("publish", "chat:1", "new", "--id", key, env=here)
    assert first.stdout == again.stdout
    assert len(messages(database)) == 1201


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat:1", "new", "{bad"], ["not JSON", "@"]),
        (["chat:1", "new", "NaN"], ["not JSON"]),
        (["chat:1", "new", "@/no/such/file"], ["/no/such/file", "cannot be read"]),
        (["chat:1", "new", "--id", "7"], ["--id 7 is not a UUID"]),
        (["chat:1", "new", "--count", "0"], ["--count 0"]),
        (["chat:1", "new", "--count", "2", "--id", str(uuid.uuid4())], ["--id", "--count"]),
        (["nope", "new"], ["no enabled channel", '"nope"', "realtime_channels"]),
        (["chat:", "new"], ["chat:"]),
        (["chat:1", "new", "--url", "http://127.0.0.1:1"], ["--database-url and --url"]),
    ],
)
def test_a_wrong_publish_gets_one_sentence(
    arguments: list[str], words: list[str], env: dict[str, str], database: pg.Database
) -> None:
    to = ["--database-url", database.owner_url]
    code = 1 if arguments[0] in ("nope", "chat:") else 2  # refused by the database
    refused(rowcast("publish", *arguments, *to, env=env), *words, code=code)


def test_the_bridge_login_may_not_publish(env: dict[str, str]) -> None:
    done = rowcast("publish", "chat:1", "new", env=env)
    refused(done, "rowcast_bridge may not", "rowcast_publisher")


# serve


@pytest.fixture
def bridge(env: dict[str, str]) -> Iterator[str]:
    """The URL of a bridge."""
    with started("serve", env=env) as command:
        yield command.json()["url"]


def test_serve_reports_readiness_and_drains_at_a_signal(env: dict[str, str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with started("serve", "--host", "127.0.0.1", "--port", "0", env=env) as command:
            line = command.line()
            assert line.startswith('{"event":"ready","url":"http://127.0.0.1:')
            assert json.loads(line)["pid"] == command.process.pid
            assert command.stop(number) == 0
            assert "event=draining" in command.log
            assert command.rest() == ""


def test_serve_speaks_in_words_on_a_terminal(env: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    with started("serve", env=env, stdout=theirs) as command:
        os.close(theirs)
        assert os.read(ours, 200).startswith(b"rowcast listens on http://127.0.0.1:")
        assert command.stop() == 0
    os.close(ours)


def test_serve_names_what_is_missing_and_which_port_is_taken(
    env: dict[str, str], bare: dict[str, str], bridge: str
) -> None:
    refused(rowcast("serve", env=bare), "ROWCAST_DATABASE_URL")
    weak = {**env, "ROWCAST_JWT_SECRET": "short"}
    refused(rowcast("serve", env=weak), "ROWCAST_JWT_SECRET", "32 bytes")
    taken = bridge.rsplit(":", 1)[1]
    done = rowcast("serve", "--port", taken, env=env)
    assert done.returncode == 1
    assert f"rowcast: 127.0.0.1:{taken} cannot be listened on" in done.stderr


# publish and listen through a bridge


def test_publish_through_a_bridge_obeys_the_policies(
    bridge: str, env: dict[str, str], database: pg.Database
) -> None:
    to = ("--url", bridge, "--token", token("ann"))
    done = rowcast("publish", "chat:1", "new", '{"n": 1.50}', *to, env=env)
    assert done.returncode == 0, done.stderr
    ((message_id, *_, sender),) = messages(database)
    assert (message_id, sender) == (done.stdout.strip(), "user")
    many = rowcast("publish", "chat:1", "new", "--count", "30", *to, env=env)
    assert many.stdout == "30 messages published\n"
    refused(rowcast("publish", "nope", "new", *to, env=env), "nope", "policies")
    wrong = ("--url", bridge, "--token", "no.such.token")
    refused(rowcast("publish", "chat:1", "new", *wrong, env=env), "token")
    refused(rowcast("publish", "chat:1", "new", "--url", bridge, env=env), "--token")


def test_listen_prints_a_line_per_message_until_ctrl_c(
    bridge: str, env: dict[str, str], database: pg.Database
) -> None:
    to = ("--database-url", database.owner_url)
    rowcast("publish", "chat:1", "old", '{"n": 0}', *to, env=env)
    listening = ("listen", "chat:1", "order:7", "--url", bridge, "--token", token("ann"))
    with started(*listening, "--history", "5", env=env) as command:
        assert 'chat:1 old {"n": 0}' in command.line()
        command.says("listening to chat:1")
        command.says("listening to order:7")
        rowcast("publish", "order:7", "paid", '{"n": 1}', *to, env=env)
        assert 'order:7 paid {"n": 1}' in command.line()
        assert command.stop() == 130
        assert "--after " in command.log
        cursor = command.log.split("--after ")[1].split()[0]
    rowcast("publish", "order:7", "sent", '{"n": 2}', *to, env=env)
    with started(*listening, "--after", cursor, "--json", env=env) as command:
        missed = command.json()
        while missed["event"] == "paid":  # may be repeated: the cursor follows within a second
            missed = command.json()
        assert (missed["channel"], missed["event"], missed["payload"]) == (
            "order:7", "sent", {"n": 2},
        )  # fmt: skip


def test_listen_goes_on_when_the_bridge_comes_back(
    env: dict[str, str], database: pg.Database
) -> None:
    to = ("--database-url", database.owner_url)
    with started("serve", env=env) as first:
        url = first.json()["url"]
        command = ("listen", "chat:1", "--url", url, "--token", token("ann"))
        with started(*command, env=env) as listener:
            listener.says("listening to chat:1")
            rowcast("publish", "chat:1", "one", *to, env=env)
            assert "chat:1 one {}" in listener.line()
            first.process.kill()
            first.process.wait()
            rowcast("publish", "chat:1", "two", *to, env=env)
            with started("serve", "--port", url.rsplit(":", 1)[1], env=env) as second:
                second.json()
                assert "chat:1 two {}" in listener.line()
                rowcast("publish", "chat:1", "three", *to, env=env)
                assert "chat:1 three {}" in listener.line()


def test_listen_ends_when_it_is_refused(bridge: str, env: dict[str, str]) -> None:
    to = ("--url", bridge, "--token")
    refused(rowcast("listen", "nope", *to, token("ann"), env=env), "nope", "policies")
    done = rowcast("listen", "chat:1", *to, "no.such.token", env=env)
    assert done.returncode == 1
    assert "rowcast: " in done.stderr
    assert "token" in done.stderr


def test_a_missing_bridge_is_reported_at_the_first_attempt(bare: dict[str, str]) -> None:
    to = ("--url", "http://127.0.0.1:1", "--token", token("ann"))
    for command in (("listen", "chat:1"), ("publish", "chat:1", "new")):
        with started(*command, *to, env=bare) as running:
            running.says("no answer from http://127.0.0.1:1")
            assert running.process.wait(30) == 1
            assert running.log.splitlines()[-1].startswith(
                "rowcast: No bridge answers at http://127.0.0.1:1 ("
            )
            assert "rowcast serve" in running.log
            assert "Traceback" not in running.log


@pytest.mark.parametrize(
    ("name", "words"),
    [("chat:*x", "not a channel name"), ("a b", "not a channel name"), ("", "CHANNEL is empty")],
)
def test_an_invalid_channel_name_is_refused(
    name: str, words: str, bridge: str, env: dict[str, str]
) -> None:
    to = ("--url", bridge, "--token", token("ann"))
    code = 1 if name else 2
    refused(rowcast("listen", name, *to, env=env), words, code=code)
    done = rowcast("publish", name, "new", *to, env=env)
    refused(done, words if not name else "is not valid", code=code)


def test_whom_the_policies_refuse_learns_what_tells_why(bridge: str, env: dict[str, str]) -> None:
    to = ("--url", bridge, "--token", token("ann"))
    done = rowcast("listen", "nowhere:1", *to, env=env)
    refused(done, "do not allow", "`rowcast policy explain subscribe nowhere:1`")
    done = rowcast("publish", "nowhere:1", "new", *to, env=env)
    refused(done, "do not allow", "`rowcast policy explain publish nowhere:1`")


@pytest.mark.parametrize("spoiled", ["expired", "another's", "postgres's", "none"])
def test_a_token_that_is_refused_comes_with_how_to_make_one(
    spoiled: str, bridge: str, env: dict[str, str]
) -> None:
    wrong = {
        "expired": ("--exp=-1h", "--secret", SECRET),
        "another's": ("--secret", SECRET[::-1]),
        "postgres's": ("--role", "postgres", "--secret", SECRET),
    }
    signed = (
        rowcast("token", *wrong[spoiled], env=env).stdout.strip() if spoiled in wrong else "junk"
    )
    to = ("--url", bridge, "--token", signed)
    for command in (("listen", "chat:1"), ("publish", "chat:1", "new")):
        done = rowcast(*command, *to, env=env)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith(
            "Create one with `rowcast token` and the bridge's ROWCAST_JWT_SECRET."
        )


def test_without_a_url_a_dev_must_run(bare: dict[str, str]) -> None:
    refused(rowcast("listen", "chat:1", env=bare), "rowcast dev", "--url", "--token")
    refused(rowcast("publish", "a", "b", env=bare), "--database-url", "rowcast dev")
    refused(rowcast("status", env=bare), "ROWCAST_DATABASE_URL")
