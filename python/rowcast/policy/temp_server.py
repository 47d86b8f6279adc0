"""Starts a temporary PostgreSQL with rowcast in it, for the length of a block."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rowcast.dev import server as embedded
from rowcast.install.migrate import migrate
from rowcast.postgres.connect import connect

__all__ = ["temporary_server"]

DATABASE = "policies"


@contextmanager
def temporary_server() -> Iterator[str]:
    """Yield the URL of a migrated database on a server that exists only for the block.

    Raises:
        EmbeddedError: a server cannot be started here; the message says what to do.
    """
    home = Path(tempfile.mkdtemp(prefix="rowcast-policy-"))
    try:
        home.chmod(0o711)  # run by root, the server is another user and must be able to enter
        server = embedded.start(home / "data", durable=False)
        try:
            with connect(server.url()) as maintenance:
                maintenance.create_database(DATABASE)
            migrate(server.url(DATABASE), env={})
            yield server.url(DATABASE)
        finally:
            embedded.stop(
                server, mode="immediate"
            )  # its data is thrown away, so a checkpoint is not needed
    finally:
        shutil.rmtree(home)
