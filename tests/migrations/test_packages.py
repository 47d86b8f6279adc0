"""The SQL travels with the package, however it is installed; each in a fresh environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from rowcast import __version__
from rowcast.files import migration_files, policy_files, sql_files
from rowcast.install.migrate import install_script

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("python", "sql", "migrations", "policies", "pyproject.toml", "LICENSE", "README.md")
SAY = "from rowcast.install.migrate import install_script; print(install_script(), end='')"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, for builds to litter."""
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
    (found,) = (source / "dist").glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    run(sys.executable, "-m", "build", "-wnx", "-o", "dist", cwd=source)
    (found,) = (source / "dist").glob("*.whl")
    return found


def installed(home: Path, *what: str | Path) -> Path:
    """Install into a new environment, which borrows the dependencies; return its programs."""
    venv.create(home / "env", with_pip=False)
    programs = home / "env" / "bin"
    theirs = run(programs / "python", "-c", "import site; print(*site.getsitepackages())", cwd=home)
    (Path(theirs.split()[0]) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q")
    # The build tool is borrowed, too: nothing is fetched.
    run(*pip, "--no-deps", "--no-index", "--no-build-isolation", *what, cwd=home)
    return programs


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}


def test_the_wheel_carries_all_sql_and_nothing_of_the_checkout_besides(wheel: Path) -> None:
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
    assert "policies/.sqlfluff" in inside


def test_a_wheel_installs_the_same_database_as_the_checkout(wheel: Path, tmp_path: Path) -> None:
    programs = installed(tmp_path, wheel)
    assert run(programs / "python", "-Ic", SAY, cwd=tmp_path) == install_script()
    # The command is there, and the package is found from nowhere else.
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
