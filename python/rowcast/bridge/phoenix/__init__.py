"""The door for Supabase's clients: the Phoenix protocol and broadcasts over HTTP."""

from __future__ import annotations

__all__: list[str] = []
