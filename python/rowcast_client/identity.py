"""The token that the client presents, and its refresh on an open connection."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from .connection import Connection
from .dispatch import Dispatcher
from .frames import Frame, RealtimeError, encode, refusal

__all__ = ["Identity", "Token"]

Token = str | Callable[[], str | Awaitable[str | None] | None] | None

TOKEN_TIMEOUT = 10.0


class Identity:
    """The token and its refresh.

    Args:
        token: a token, or a callable that returns one.
        dispatcher: told of errors.
    """

    def __init__(self, token: Token, dispatcher: Dispatcher) -> None:
        self._token = token
        self._dispatcher = dispatcher
        self._connection: Connection | None = None
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def renewable(self) -> bool:
        """Whether the application's callable may return another token; a string stays the same."""
        return callable(self._token)

    async def token(self) -> str | None:
        """Return the token to present now.

        Raises:
            RealtimeError: `token_unavailable`, the application's callable failed or took too long.
        """
        if not callable(self._token):
            return self._token
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT):
                token = self._token()
                return await token if inspect.isawaitable(token) else token
        except Exception as error:
            text = f"The token callable failed: {error!r}."
            raise RealtimeError("token_unavailable", text) from error

    def connected(self, connection: Connection) -> None:
        self._connection = connection

    def refresh(self, accepted: Callable[[], None]) -> None:
        """Present a new token, if the application can provide one; one refresh at a time.

        Args:
            accepted: called once the server has accepted the new token.
        """
        self.tasks = [task for task in self.tasks if not task.done()]
        if self.renewable and not self.tasks:
            self.tasks.append(asyncio.create_task(self._refresh(accepted)))

    async def _refresh(self, accepted: Callable[[], None]) -> None:
        connection = self._connection
        try:
            token = await self.token()
        except RealtimeError as error:
            self._dispatcher.report(error)
            return
        if connection is None or not token:
            return
        answered: asyncio.Future[Frame | None] = asyncio.get_running_loop().create_future()

        def answer(frame: Frame | None) -> None:
            if not answered.done():
                answered.set_result(frame)

        connection.request(encode({"op": "auth", "token": token}), answer)
        frame = await answered
        if frame is None:
            return  # the next connection presents a token of its own
        if frame["op"] == "error":
            self._dispatcher.report(refusal(frame))
        else:
            accepted()
