"""The SQL files of one version of rowcast, as the migration runner needs them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rowcast.errors import MigrationError
from rowcast.files import migration_files, sql_files

__all__ = ["Release", "SqlFile"]

NUMBERED = re.compile(r"(\d{4})_[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One SQL file: folder and name for messages, text, and the checksum that is recorded."""

    folder: str
    name: str
    text: str
    sha256: str

    @classmethod
    def read(cls, path: Path) -> SqlFile:
        # Newlines are read as \n, so that a checkout on Windows has the same checksums.
        text = path.read_text(encoding="utf-8")
        return cls(path.parent.name, path.stem, text, hashlib.sha256(text.encode()).hexdigest())

    @property
    def label(self) -> str:
        return f"{self.folder}/{self.name}.sql"

    @property
    def version(self) -> int:
        """The number of a migration.

        Raises:
            MigrationError: the name is not ``NNNN_name.sql``.
        """
        found = NUMBERED.fullmatch(self.name)
        if found is None:
            raise MigrationError(
                f"{self.label} is not the name of a migration: name it like 0001_name.sql."
            )
        return int(found[1])


@dataclass(frozen=True, slots=True)
class Release:
    """The SQL files of a version.

    ``first`` (roles and schema) runs every time, each of ``migrations`` once, and all of ``code``
    whenever one of its files has changed.
    """

    first: tuple[SqlFile, ...]
    migrations: tuple[SqlFile, ...]
    code: tuple[SqlFile, ...]

    @classmethod
    def shipped(cls) -> Release:
        """Return the release in this package."""
        return cls.of(sql_files(), migration_files())

    @classmethod
    def of(cls, sql: Iterable[Path], migrations: Iterable[Path]) -> Release:
        """Read a release from files.

        Raises:
            MigrationError: a migration is misnamed, or two have the same number.
        """
        files = [SqlFile.read(path) for path in sorted(sql, key=lambda path: path.name)]
        first = tuple(file for file in files if file.name.startswith("00_"))
        numbered = sorted((SqlFile.read(path) for path in migrations), key=lambda f: f.version)
        for one, other in pairwise(numbered):
            if one.version == other.version:
                raise MigrationError(
                    f"{one.label} and {other.label} have the same number: renumber one."
                )
        return cls(first, tuple(numbered), tuple(files[len(first) :]))

    @property
    def version(self) -> int:
        """The number of the newest migration."""
        return self.migrations[-1].version if self.migrations else 0

    @property
    def checksums(self) -> dict[str, str]:
        """Name of each code file → checksum."""
        return {file.name: file.sha256 for file in self.code}
