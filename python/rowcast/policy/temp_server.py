"""A PostgreSQL for the length of a test, with rowcast in it, gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rowcast.dev import server as embedded
from rowcast.install.migrate import migrate
from rowcast.postgres import connect as command_database

__all__ = ["temporary_server"]

DATABASE = "policies"


@contextmanager
def temporary_server() -> Iterator[str]:
    """Yield the URL of a migrated database on a server that is started for this.

    Raises:
        EmbeddedError: there is no server to be had here; the message says what to do.
    """
    home = Path(tempfile.mkdtemp(prefix="rowcast-policy-"))
    try:
        home.chmod(0o711)  # as root the server is another user, and must get through
        server = embedded.start(home / "data", durable=False)
        try:
            with command_database.connect(server.url()) as database:
                database.create_database(DATABASE)
            migrate(server.url(DATABASE), env={})
            yield server.url(DATABASE)
        finally:
            embedded.stop(server, mode="immediate")  # nothing in it is worth a checkpoint
    finally:
        shutil.rmtree(home)
