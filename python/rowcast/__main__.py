"""``python -m rowcast`` is the same as ``rowcast``."""

from __future__ import annotations

import sys

from rowcast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
