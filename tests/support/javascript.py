"""Node, npm and Chromium for the tests of the JavaScript client."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

__all__ = ["SCRIPTS", "WEB", "Node", "blocks", "chromium", "modules", "reader", "snippets"]

SCRIPTS = Path(__file__).parents[1] / "acceptance" / "js"
WEB = Path(__file__).parents[2] / "python" / "rowcast" / "web"
TIMEOUT = 90.0


def snippets() -> dict[str, list[str]]:
    """Return the code blocks of page.md by heading."""
    sections = re.split(r"^## (.+)$", (SCRIPTS / "page.md").read_text(), flags=re.MULTILINE)[1:]
    return {title: blocks(body) for title, body in zip(sections[::2], sections[1::2], strict=True)}


def blocks(text: str, language: str = r"\w+") -> list[str]:
    """Return the code blocks of a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def modules() -> Path:
    """Return a directory whose `node_modules` has the packed client and the packages of the tests.

    It is kept between runs, under a name derived from its contents.
    """
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    wanted = [SCRIPTS / "package.json", *sorted(WEB.glob("client*")), WEB / "package.json"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in wanted)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "rowcast-tests")
    home = cache / f"js-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel workers install once
        if not home.exists():
            _install(home)
    return home


def _install(home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        making = Path(scratch, "modules")
        making.mkdir()
        shutil.copy(SCRIPTS / "package.json", making)
        # Packed as it is published, so a file that the package lacks is missing here as well.
        _npm("pack", str(WEB), "--pack-destination", scratch, cwd=making)
        (package,) = Path(scratch).glob("rowcast-client-*.tgz")
        _npm("install", "--no-package-lock", "--prefer-offline", str(package), cwd=making)
        making.rename(home)


def _npm(*arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        ["npm", "--no-audit", "--no-fund", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        pytest.fail(f"npm {arguments[0]} failed:\n{done.stderr}")


def chromium() -> str:
    """Return the path of the browser; skip the test without one."""
    path = os.environ.get("ROWCAST_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed: set ROWCAST_CHROMIUM to its path")
    return path


class Node:
    """A directory in which Node runs modules.

    Args:
        directory: an empty directory of the test.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for script in SCRIPTS.glob("*.*"):
            shutil.copy(script, directory)
        (directory / "node_modules").symlink_to(modules() / "node_modules")

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, "ROWCAST_CLIENT": str(WEB / "client.js"), **more}

    def run(self, *arguments: str, **more: str) -> str:
        """Run node to its end and return its output; fail the test if node fails."""
        done = subprocess.run(
            ["node", *arguments],
            cwd=self.directory,
            env=self.environment(more),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        if done.returncode:
            pytest.fail(
                f"node {' '.join(arguments)} ended with {done.returncode}:\n"
                f"{done.stdout}\n{done.stderr}"
            )
        return done.stdout + done.stderr

    def write(self, name: str, *parts: str) -> str:
        """Write a module of these parts and return its name."""
        (self.directory / name).write_text("\n".join(parts))
        return name

    def page(self, module: str) -> str:
        """Run a module as the script of a page in Chromium."""
        return self.run("chromium.js", module, ROWCAST_CHROMIUM=chromium())

    @contextlib.contextmanager
    def started(self, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        """Run node for the length of a block."""
        process = subprocess.Popen(
            ["node", *arguments],
            cwd=self.directory,
            env=self.environment(more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def reader(stream: object) -> Callable[[], str]:
    """Return a function that reads a line; without one in time the test fails."""

    def read() -> str:
        box: list[str] = []
        thread = threading.Thread(target=lambda: box.append(stream.readline()), daemon=True)  # type: ignore[attr-defined]
        thread.start()
        thread.join(20)
        assert box, "no line in time"
        return box[0].rstrip("\n")

    return read
