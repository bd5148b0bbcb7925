"""Whether this node may acknowledge, sign and give: not while it is restored, nor once it leaves."""

from __future__ import annotations

import asyncio

from .errors import NotReadyError


class Standing:
    """Reasons why a node holds back, by name."""

    def __init__(self) -> None:
        self._reasons: dict[str, tuple[str, str, bool]] = {}
        self._opened = asyncio.Event()
        """Set, and replaced, whenever a reason ends."""

    @property
    def is_open(self) -> bool:
        """Whether nothing holds it back."""
        return not self._reasons

    @property
    def is_serving(self) -> bool:
        """Whether peers are given bytes."""
        return all(is_serving for _, _, is_serving in self._reasons.values())

    @property
    def reason(self) -> str:
        """Why it holds back, as a clause; empty if it does not."""
        return next((message for message, _, _ in self._reasons.values()), "")

    def close(self, name: str, message: str, *, hint: str = "", is_serving: bool) -> None:
        """Hold back from now on; peers are still given bytes if ``is_serving``."""
        self._reasons[name] = message, hint, is_serving

    def open(self, name: str) -> None:
        """Take back one reason."""
        self._reasons.pop(name, None)
        self._opened.set()
        self._opened = asyncio.Event()

    async def until_open(self, name: str) -> None:
        """Return once a reason no longer holds the node back."""
        while name in self._reasons:
            await self._opened.wait()

    def check(self) -> None:
        """Refuse what would be acknowledged.

        Raises:
            NotReadyError: Something holds the node back.
        """
        for message, hint, _ in self._reasons.values():
            raise NotReadyError(f"{message}.", hint=hint)
