"""`rowcast policy port`: policies written for other systems, as policies of rowcast."""

from __future__ import annotations

__all__: list[str] = []
