"""Whom the client speaks for."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from .channels import Report
from .connection import Link
from .frames import Frame, RealtimeError, encode, refusal

__all__ = ["Identity", "Token"]

Token = str | Callable[[], str | Awaitable[str | None] | None] | None

TOKEN_TIMEOUT = 10.0


class Identity:
    """The token, and its refreshing on an open connection.

    Args:
        token: a text, or what is asked for one.
        report: told of errors.
        refreshed: called when the server has taken a new token.
    """

    def __init__(self, token: Token, report: Report, refreshed: Callable[[], None]) -> None:
        self._token = token
        self._report = report
        self._refreshed = refreshed
        self._link: Link | None = None
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def renewable(self) -> bool:
        """Whether asking again may bring another token; a text stays what it is."""
        return callable(self._token)

    async def token(self) -> str | None:
        """The token of this moment.

        Raises:
            RealtimeError: `token_unavailable`, the application's callable failed.
        """
        if not callable(self._token):
            return self._token
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT):
                token = self._token()
                return await token if inspect.isawaitable(token) else token
        except Exception as error:
            raise RealtimeError(
                "token_unavailable", f"The token could not be had: {error!r}."
            ) from error

    def connected(self, link: Link) -> None:
        """The connection to refresh on."""
        self._link = link

    def refresh(self) -> None:
        """Send a new token, once at a time, if there can be one."""
        self.tasks = [task for task in self.tasks if not task.done()]
        if self.renewable and not self.tasks:
            self.tasks.append(asyncio.create_task(self._refresh()))

    async def _refresh(self) -> None:
        link = self._link
        try:
            token = await self.token()
        except RealtimeError as error:
            self._report(error, None)
            return
        if link is None or not token:
            return
        answered: asyncio.Future[Frame | None] = asyncio.get_running_loop().create_future()

        def answer(frame: Frame | None) -> None:
            if not answered.done():
                answered.set_result(frame)

        link.ask(encode({"op": "auth", "token": token}), answer)
        frame = await answered
        if frame is None:
            return  # the next connection has asked again
        if frame["op"] == "error":
            self._report(refusal(frame), None)
        else:
            self._refreshed()
