"""Words that tracked text must not contain: registries, local paths, marks, vague actors."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

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


# Prose must name its actors (client, publisher, owner, caller) and say "is not a": these words hide
# them. "There is no" is fine, and so are names in backticks and names of policies and personas.
VAGUE = re.compile(
    r"(?<!policy )(?<!persona )\b(?:whoever|whomever|nobody|somebody|everybody)\b"
    r"|(?<!there )\b(?:is|are|was|were) no (?!longer\b|more than\b|\w+er than\b)\w+"
    r"|\b(?:he|him|his|himself)\b"
    r"|\b(?:sheep|ghosts?)\b",
    re.IGNORECASE,
)
# Text that is not ours to change: migrations are applied by checksum, and pages are quoted.
QUOTED = re.compile(
    r"CHANGELOG\.md|migrations/\d.*|.*/(snapshots|published)/.*|.*/page\.md|.*/RESULTS\.md"
)
NAME = re.compile(r"(`+)[^`]+\1")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line number and text of what is written for readers: no code, no single words."""
    text = path.read_text()
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.split()
                if len(words) > 2:
                    yield node.lineno, " ".join(words)
    else:
        fenced = path.suffix == ".md" and re.sub(r"^```.*?^```", _blank, text, flags=re.M | re.S)
        yield from enumerate((fenced or text).splitlines(), 1)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def test_prose_names_its_actors() -> None:
    found = []
    for path in tracked_files():
        name = str(path.relative_to(ROOT))
        read = path.suffix in (".md", ".py", ".sql") or name.endswith("web/client.js")
        exempt = QUOTED.fullmatch(name) or path == Path(__file__)
        if read and not exempt:
            found += [
                f"{name}:{line}: {match[0]!r}"
                for line, text in prose(path)
                for match in VAGUE.finditer(NAME.sub("", text))
            ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Whoever joins is counted.",
        "Nobody's token.",
        "it is no id of a channel",
        "There are three, and two are no keys.",
        "the client and his session",
    ],
)
def test_vague_words_are_found(text: str) -> None:
    assert VAGUE.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "There is no server.",
        "If there are no rows, it ends.",
        "It is no longer there.",
        "It is no later than that.",
        "the history",
    ],
)
def test_plain_words_pass(text: str) -> None:
    assert not VAGUE.search(text)
