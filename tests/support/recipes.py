"""Policies for tests: the shipped recipes, and the policies of the product's page."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PAGE_POLICIES", "recipe"]

# as written on the product's page
PAGE_POLICIES = """
CREATE POLICY "Users can subscribe to public channels"
ON realtime_channels FOR SELECT
USING (enabled = true AND is_public = true);

CREATE POLICY "Users can subscribe to their own channels"
ON realtime_channels FOR SELECT
USING (owner_id = auth.user_id());

CREATE POLICY "Users can publish to their channels"
ON realtime_messages FOR INSERT
WITH CHECK (
  EXISTS (
    SELECT 1 FROM channel_members
    WHERE channel_id = realtime_messages.channel_id
    AND user_id = auth.user_id()
  )
);
"""


def recipe(name: str) -> bytes:
    """Return the text of a recipe of policies/."""
    return (Path(__file__).parents[2] / "policies" / f"{name}.sql").read_bytes()
