"""The policy workbench behind `rowcast policy`, one module per subject.

pglast and sqlfluff come with the extra `policy` and are imported when a command needs them.
"""

from __future__ import annotations

__all__: list[str] = []
