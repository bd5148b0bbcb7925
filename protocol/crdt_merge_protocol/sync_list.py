"""Listing: the fuller side of a session names all it has, page by page, and sends the lacking (PROTOCOL 2).

For a node that is new or was away for long, a walk would cost more than the list. Each page is answered by a
bitmap, then come the operations of that page, then the next page. The answer to a page waits until the one
before it is durable, so a listing runs at the speed of the receiver's disk.

Pages ascend strictly by (depth, id), which the receiver checks as soon as it knows the depths. So a liar can
list only what the receiver already has, once, or what it then really sends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .errors import MalformedMessageError
from .limits import SYNC_PAGE_IDS_MAX
from .messages.sync import Lack, List
from .operations import SignedOperation
from .sync_stream import SyncView


class Lister:
    """The side that lists."""

    def __init__(self, state: SyncView, session: bytes, after: bytes | None) -> None:
        self._session = session
        self._order = state.causal()
        self._position = 0
        if after is not None:
            # An id that is not here starts the list from its beginning, which is always right.
            places = {signed.id: place for place, signed in enumerate(self._order, 1)}
            self._position = places.get(after, 0)
        self._page: list[SignedOperation] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every page was sent and answered."""
        return self._page is None and self._position >= len(self._order)

    @property
    def is_waiting(self) -> bool:
        """Whether a page is out and not answered."""
        return self._page is not None

    def next_page(self) -> List:
        """Return the next page; the last one has no ids left behind it, and may be empty."""
        self._page = self._order[self._position : self._position + SYNC_PAGE_IDS_MAX]
        self._position += len(self._page)
        return List(
            session=self._session,
            left_count=len(self._order) - self._position,
            ids=tuple(signed.id for signed in self._page),
        )

    def answered(self, message: Lack) -> list[SignedOperation]:
        """Return the operations of the page that are lacking, in its order.

        Raises:
            MalformedMessageError: No page is out, or the bitmap is not one of its size.
        """
        page, self._page = self._page, None
        if page is None or message.after is not None or len(message.bitmap) != (len(page) + 7) // 8:
            raise MalformedMessageError("an answer to a page does not fit the page.")
        bits = int.from_bytes(message.bitmap, "little")
        if bits >> len(page):
            raise MalformedMessageError("an answer to a page has bits behind its end.")
        return [signed for place, signed in enumerate(page) if bits >> place & 1]


class Listed:
    """The side that is told."""

    def __init__(self, state: SyncView, session: bytes) -> None:
        self._state = state
        self._session = session
        self._latest = (0, b"")
        self._waiting: List | None = None
        self._answered: List | None = None
        self._unsettled: tuple[bytes, ...] = ()
        self.cursor: bytes | None = None
        """Last id of the last page that is durable here in full."""

    @property
    def is_complete(self) -> bool:
        """Whether the last page was answered; what it lacked may still be on its way."""
        return self._waiting is None and self._answered is not None and not self._answered.left_count

    def receive(self, page: List) -> None:
        """Take in a page, to be answered when all before it is durable.

        Raises:
            MalformedMessageError: The page before it is not answered, or this one does not follow it.
        """
        before = self._answered
        follows = before is None or before.left_count == page.left_count + len(page.ids)
        if self._waiting is not None or not follows:
            raise MalformedMessageError("a page of a list does not follow the one before it.")
        self._waiting = page

    def answer(self) -> tuple[Lack, deque[bytes]] | None:
        """Return the answer to the waiting page and the ids that are lacking; None if no page waits.

        Everything received before must be durable.

        Raises:
            MalformedMessageError: The ids do not ascend by (depth, id).
        """
        page = self._waiting
        if page is None:
            return None
        self.settle()
        self._ascend(page.ids)
        lacking = [place for place, identifier in enumerate(page.ids) if identifier not in self._state]
        bits = sum(1 << place for place in lacking)
        bitmap = bits.to_bytes((len(page.ids) + 7) // 8, "little")
        self._waiting, self._answered, self._unsettled = None, page, page.ids
        return Lack(session=self._session, bitmap=bitmap), deque(page.ids[place] for place in lacking)

    def settle(self) -> None:
        """Check the page that is complete now, and move the cursor behind it."""
        if self._unsettled:
            self._latest = self._ascend(self._unsettled)
            self.cursor = self._unsettled[-1]
            self._unsettled = ()

    def _ascend(self, ids: Iterable[bytes]) -> tuple[int, bytes]:
        latest = self._latest
        for identifier in ids:
            if identifier in self._state:
                current = (self._state.depth(identifier), identifier)
                if current <= latest:
                    raise MalformedMessageError("the ids of a list do not ascend by depth.")
                latest = current
        return latest
