"""`rowcast policy port`."""
from __future__ import annotations
from .common import Commands
__all__ = ["add"]
def add(commands: Commands) -> None:
    """Describe the command."""
