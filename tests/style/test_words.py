"""Words that tracked text must not contain: names of registries, unfinished marks, local paths."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from style.sources import ROOT, tracked_files

# Spelt in pieces, because otherwise this file would be a finding.
HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "deb" + "ian.org",
    "docker" + ".io",
    "proxy.gol" + "ang.org",
    "crates" + ".io",
]
UNFINISHED = ["TO" + "DO", "FIX" + "ME", "X" * 3]
HOMES = ["ro" + "ot", "wo" + "rk", "ho" + "me"]

HOST = re.compile("|".join(re.escape(host) for host in HOSTS))
MARK = re.compile(rf"\b({'|'.join(UNFINISHED)})\b")
# An absolute path, not the end of a longer one such as a URL.
HOME = re.compile(rf"(?<![\w.}}/~-])/({'|'.join(HOMES)})/\w")
SCRATCH = re.compile(r"(?<![\w.}/~-])/tmp/\w")


def texts() -> Iterator[tuple[str, int, str]]:
    """Yield file, line number and line of all tracked text."""
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield str(path.relative_to(ROOT)), number, line


def findings(pattern: re.Pattern[str], suffix: str = "") -> list[str]:
    return [
        f"{file}:{number}: {line.strip()[:100]}"
        for file, number, line in texts()
        if file.endswith(suffix) and pattern.search(line)
    ]


def test_there_is_text_to_read() -> None:
    assert {"README.md", "pyproject.toml", ".ci/run"} <= {file for file, _, _ in texts()}


@pytest.mark.parametrize("pattern", [HOST, MARK, HOME], ids=["registries", "unfinished", "homes"])
def test_no_tracked_text_has(pattern: re.Pattern[str]) -> None:
    found = findings(pattern)
    assert not found, "\n".join(found)


def test_no_document_sends_its_reader_to_a_scratch_directory() -> None:
    found = findings(SCRATCH, ".md")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (HOST, f"see https://{HOSTS[0]}/project"),
        (MARK, f"# {UNFINISHED[0]}: later"),
        (HOME, f"cd /{HOMES[0]}/project"),
        (HOME, f'"/{HOMES[1]}/x"'),
        (SCRATCH, "look at /tmp/log"),
    ],
)
def test_the_pattern_catches_what_it_is_for(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


@pytest.mark.parametrize("line", [f"http://host/{HOMES[1]}/x", f"var/{HOMES[2]}/x", "a todo list"])
def test_the_patterns_spare_other_text(line: str) -> None:
    assert not any(pattern.search(line) for pattern in (HOST, MARK, HOME, SCRATCH))
