"""Publishes for clients, and keeps their own messages from them where they do not want an echo."""

from __future__ import annotations

from rowcast.errors import Refusal

from .access import Access
from .facts import Facts
from .hub import Hub
from .model import Caller
from .session import Session
from .wire.protocol import Publish, Published

__all__ = ["Publishing"]


class Publishing:
    """Publishes for all sessions.

    Args:
        hub: the subscriptions through which a session hears a name.
        access: publishes under the policies.
        facts: the largest payload.
    """

    def __init__(self, hub: Hub, access: Access, facts: Facts) -> None:
        self._hub = hub
        self._access = access
        self._facts = facts

    async def publish(self, session: Session, caller: Caller, op: Publish) -> None:
        """Publish, and answer once the message is committed.

        Raises:
            Refusal: denied, wrong, or the database cannot answer.
        """
        hearing = self._hub.subscriptions_for(session, op.channel)
        for subscription in hearing:
            subscription.publish_begins()
        try:
            try:
                payload = bytes(op.payload).decode()
            except UnicodeDecodeError:
                raise Refusal("invalid_message", "The payload is not valid UTF-8.") from None
            if self._facts.current.exceeds_payload_limit(bytes(op.payload)):
                raise Refusal("payload_too_large")
            message_id = await self._access.publish(
                caller, session.id, op.channel, op.type, op.event, payload, op.id
            )
            session.own_ids.append(str(message_id))
            session.tell(Published(op.ref, str(message_id)))
        finally:
            for subscription in hearing:
                subscription.publish_ends()
                self._hub.release(session, subscription)
