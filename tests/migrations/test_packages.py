"""Both distributions, built and installed in fresh environments: `rowcast` carries its SQL."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from rowcast import __version__
from rowcast.files import migration_files, policy_files, sql_files
from rowcast.install.migrate import install_script
from support import pg
from support.bridge_process import daemon, open_channels, token

ROOT = Path(__file__).resolve().parents[2]
TOP_FILES = (
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "RELEASING.md",
    "pyproject.toml",
)
PARTS = ("python", "sql", "migrations", "policies", *TOP_FILES)
SAY = "from rowcast.install.migrate import install_script; print(install_script(), end='')"

TALK = """
import asyncio
import sys

import rowcast_client

async def main(url, token):
    async with rowcast_client.connect(url, token=token) as realtime:
        channel = await realtime.channel("chat:1").subscribe()
        sent = await channel.send("said", {"text": "hello"})
        async for message in channel:
            assert message.id == sent
            return message.payload["text"]

print(asyncio.run(main(*sys.argv[1:])))
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout in which builds may leave files."""
    home = tmp_path_factory.mktemp("source")
    for part in PARTS:
        path = ROOT / part
        if path.is_dir():
            shutil.copytree(path, home / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, home / part)
    return home


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    run(sys.executable, "-m", "build", "-snx", "-o", "dist", cwd=source)
    (found,) = (source / "dist").glob("rowcast-*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    run(sys.executable, "-m", "build", "-wnx", "-o", "dist", cwd=source)
    (found,) = (source / "dist").glob("rowcast-*.whl")
    return found


@pytest.fixture(scope="module")
def client_wheel(source: Path) -> Path:
    """Return the wheel that was built from the client's own sdist."""
    folder = source / "python" / "rowcast_client"
    run(sys.executable, "-m", "build", "-nx", "-o", source / "dist", cwd=folder)
    (found,) = (source / "dist").glob("rowcast_client-*.whl")
    return found


def installed(home: Path, *what: str | Path, lent: Path | None = None, deps: bool = False) -> Path:
    """Install into a new environment without fetching anything; return its programs.

    Args:
        home: an empty directory.
        what: what pip is told to install.
        lent: the packages that the environment borrows; all those of the tests by default.
        deps: check that the dependencies are there.
    """
    venv.create(home / "env", with_pip=False)
    programs = home / "env" / "bin"
    theirs = run(programs / "python", "-c", "import site; print(*site.getsitepackages())", cwd=home)
    borrowed = sysconfig.get_path("purelib") if lent is None else str(lent)
    (Path(theirs.split()[0]) / "borrowed.pth").write_text(borrowed)
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q")
    # The build tool comes from this environment, too.
    options = () if deps else ("--no-deps",)
    run(*pip, *options, "--no-index", "--no-build-isolation", *what, cwd=home)
    return programs


def lend(home: Path, distribution: str) -> Path:
    """Link a distribution and its requirements into a separate directory."""
    home.mkdir(exist_ok=True)
    found = importlib.metadata.distribution(distribution)
    for file in found.files or ():
        first = Path(str(file)).parts[0]
        target = Path(str(found.locate_file(first)))
        if first not in ("..", "__pycache__") and not (home / first).exists():
            (home / first).symlink_to(target)
    for requirement in found.requires or ():
        needed = re.match(r"[\w.-]+", requirement)
        assert needed is not None
        if "extra ==" not in requirement and is_installed(needed[0]):
            lend(home, needed[0])
    return home


def is_installed(distribution: str) -> bool:
    return any(importlib.metadata.distributions(name=distribution))


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}


def test_the_wheel_carries_all_sql_and_no_other_folder(wheel: Path) -> None:
    inside = names(wheel)
    for folder, files in (
        ("sql", sql_files()),
        ("migrations", migration_files()),
        ("policies", policy_files()),
    ):
        assert {f"rowcast/_sql/{folder}/{file.name}" for file in files} <= inside
    cases = {file.with_suffix(".test.toml").name for file in policy_files()}
    assert {f"rowcast/_sql/policies/{name}" for name in (".sqlfluff", *cases)} <= inside
    assert "rowcast/py.typed" in inside
    assert {name.split("/")[0] for name in inside} == {
        "rowcast",
        f"rowcast-{__version__}.dist-info",
    }


def test_the_sdist_carries_the_folders_as_they_are(sdist: Path) -> None:
    inside = names(sdist)
    for file in (*sql_files(), *migration_files(), *policy_files()):
        assert f"{file.parent.name}/{file.name}" in inside
    assert {"policies/.sqlfluff", "python/docs/protocol.md", *TOP_FILES} <= inside


def test_a_wheel_installs_the_same_database_as_the_checkout(wheel: Path, tmp_path: Path) -> None:
    programs = installed(tmp_path, wheel)
    assert run(programs / "python", "-Ic", SAY, cwd=tmp_path) == install_script()
    # The command exists, and the package is imported only from there.
    assert (programs / "rowcast").exists()
    where = run(programs / "python", "-Ic", "import rowcast; print(rowcast.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path))


def test_an_sdist_installs_the_same_database_as_the_checkout(sdist: Path, tmp_path: Path) -> None:
    programs = installed(tmp_path, sdist)
    assert run(programs / "python", "-Ic", SAY, cwd=tmp_path) == install_script()


def test_an_editable_install_reads_the_folders_of_the_checkout(
    source: Path, tmp_path: Path
) -> None:
    programs = installed(tmp_path, "-e", source)
    assert run(programs / "python", "-Ic", SAY, cwd=tmp_path) == install_script()
    say = "from rowcast.files import sql_files; print(sql_files()[0].parent)"
    assert run(programs / "python", "-Ic", say, cwd=tmp_path).strip() == str(source / "sql")


def test_the_client_wheel_needs_aiohttp_only(client_wheel: Path) -> None:
    """The wheel holds the package, its licence and no other folder."""
    inside = names(client_wheel)
    about = f"rowcast_client-{__version__}.dist-info"
    assert {name.split("/")[0] for name in inside} == {"rowcast_client", about}
    assert {"rowcast_client/py.typed", f"{about}/licenses/LICENSE"} <= inside
    assert not [name for name in inside if name.endswith((".toml", ".md"))]
    metadata = Parser().parsestr(zipfile.ZipFile(client_wheel).read(f"{about}/METADATA").decode())
    assert metadata.get_all("Requires-Dist") == ["aiohttp>=3.14"]


def test_the_client_wheel_alone_talks_to_a_bridge(
    client_wheel: Path, tmp_path: Path, database: pg.Database
) -> None:
    """Its environment contains only aiohttp and its requirements, not rowcast."""
    programs = installed(tmp_path, client_wheel, lent=lend(tmp_path / "lent", "aiohttp"), deps=True)
    open_channels(database, "chat:*")
    with daemon(database) as bridge:
        said = run(programs / "python", "-Ic", TALK, bridge.url, token("alice"), cwd=tmp_path)
    assert said == "hello\n"
    without = "import importlib.util; print(importlib.util.find_spec('rowcast'))"
    assert run(programs / "python", "-Ic", without, cwd=tmp_path) == "None\n"


def test_both_wheels_install_together(wheel: Path, client_wheel: Path, tmp_path: Path) -> None:
    """The daemon's wheel requires the client of its own version; `rowcast listen` finds it."""
    programs = installed(tmp_path, client_wheel, wheel, deps=True)
    assert "--after" in run(programs / "rowcast", "listen", "--help", cwd=tmp_path)
    where = "import rowcast_client; print(rowcast_client.__file__)"
    assert run(programs / "python", "-Ic", where, cwd=tmp_path).startswith(str(tmp_path))


def test_both_editable_installs_read_the_checkout(source: Path, tmp_path: Path) -> None:
    """Both put `python/` on the path, so neither hides the other."""
    programs = installed(tmp_path, "-e", source / "python" / "rowcast_client", "-e", source)
    where = "import rowcast, rowcast_client; print(rowcast.__file__, rowcast_client.__file__)"
    found = run(programs / "python", "-Ic", where, cwd=tmp_path).split()
    assert found == [
        str(source / "python" / name / "__init__.py") for name in ("rowcast", "rowcast_client")
    ]
