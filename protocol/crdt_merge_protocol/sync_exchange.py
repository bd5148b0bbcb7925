"""The messages of a sync session, in order: what may come when, and what follows from it (PROTOCOL 2).

The picture and the rules are in ``sync.py``, which adds time, failure and the caller's side to this.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from .errors import MalformedMessageError
from .limits import (
    CONTROL_BODY_BYTES_MAX,
    SYNC_LIST_THRESHOLD,
    SYNC_RETRY_AFTER_S,
    SYNC_ROUNDS_MAX,
    SYNC_STEP_BYTES_MAX,
)
from .messages.base import Message
from .messages.sync import Ack, Busy, End, Lack, List, Nodes, Open, Operations, SyncMessage
from .messages.walk import Entry, Wanted
from .reading import Reading
from .sync_list import Listed, Lister
from .sync_stream import Inbox, Outbox, SyncView
from .sync_walk import Walk, session_key

_FRAME_ENTRY_BYTES: Final = CONTROL_BODY_BYTES_MAX - 64
"""Room for entries in one NODES."""


class _Phase(Enum):
    NEW = "not begun"
    OPENED = "opened by us and not answered"
    WALKING = "waiting for the other side's step"
    SENDING = "the walk is over"
    LISTING = "we list"
    LISTED = "the other side lists"
    FINISHED = "over"


class Exchange:
    """One side of a session, without time."""

    def __init__(
        self,
        *,
        state: SyncView,
        session: bytes,
        is_initiator: bool,
        nonce: bytes,
        after: bytes | None,
        excluded_count: int,
    ) -> None:
        self.session = session
        self.outcome = ""
        self.retry_after_s = 0.0
        self.round_count = 0
        self.walk: Walk | None = None
        self.listed: Listed | None = None
        self.outbox = Outbox(session)
        self.inbox = Inbox(state, session)
        self._state = state
        self._is_initiator = is_initiator
        self._nonce = nonce
        self._after = after
        self._count = len(state) + excluded_count
        """What decides who lists."""
        self._phase = _Phase.NEW
        self._key = b""
        self._is_asked = False
        """Whether the other side's step, so far, asks anything."""
        self._is_closer = False
        self._sent_end: End | None = None
        self._their_end: End | None = None
        self._lister: Lister | None = None

    @property
    def phase(self) -> str:
        """What the session is doing, in words."""
        return self._phase.value

    @property
    def is_begun(self) -> bool:
        """Whether anything was sent or received."""
        return self._phase is not _Phase.NEW

    def open(self) -> Open:
        """Return the first message of the initiator."""
        self._phase = _Phase.OPENED
        return Open(
            session=self.session,
            group=self._state.group,
            root=self._state.sync_root,
            count=self._count,
            nonce=self._nonce,
            after=self._after,
        )

    # --- messages -------------------------------------------------------------------------------------

    def handle(self, message: Message, reading: Reading) -> list[Message]:
        """Take in a message, of whose operations this is known already, and return the answers.

        Raises:
            RemoteProtocolError: The message breaks the rules.
        """
        match message:
            case Open():
                replies = self._on_open(message)
            case Nodes():
                replies = self._on_nodes(message)
            case Operations():
                replies = self._on_operations(message, reading)
            case Ack():
                replies = self._on_ack(message)
            case List():
                replies = self._on_list(message)
            case Lack():
                replies = self._on_lack(message)
            case End():
                replies = self._on_end(message)
            case Busy():
                replies = self._on_busy(message)
            case _:
                raise MalformedMessageError(f"{type(message).__name__} is no message of a sync session.")
        return replies

    def _on_open(self, message: Open) -> list[Message]:
        if self._is_initiator or self._phase is not _Phase.NEW:
            raise self._unexpected(message)
        if message.group != self._state.group:
            raise MalformedMessageError(f"a session for group {message.group.hex()[:12]} is not this one.")
        if message.root == self._state.sync_root:
            return [self._end_as_equal()]
        surplus = self._count - message.count
        if surplus > SYNC_LIST_THRESHOLD:
            return self._begin_listing(message.after)
        if surplus < -SYNC_LIST_THRESHOLD:
            self._begin_listed()
            return [Lack(session=self.session, bitmap=b"", after=self._after)]
        self._begin_walk(session_key(message.nonce, self._nonce))
        return self._answer()

    def _on_nodes(self, message: Nodes) -> list[Message]:
        is_first = self._phase is _Phase.OPENED
        if self._phase not in (_Phase.OPENED, _Phase.WALKING) or bool(message.nonce) != is_first:
            raise self._unexpected(message)
        if is_first:
            self._begin_walk(session_key(self._nonce, message.nonce))
        if not message.is_last and not message.entries:
            raise MalformedMessageError("a frame of the walk that is not the last says nothing.")
        assert self.walk is not None, "the phase"
        for entry in message.entries:
            self.walk.absorb(entry)
            self._is_asked |= not isinstance(entry, Wanted)
        if not message.is_last:
            return []
        self.round_count += 1
        if self._is_asked:
            self._is_asked = False
            return self._answer()
        self.inbox.announce(message.left_count)
        self._close_walk(is_closer=True)
        self._check_wants()
        return []

    def _on_operations(self, message: Operations, reading: Reading) -> list[Message]:
        if self._phase is _Phase.WALKING and not self._is_asked:
            self._close_walk(is_closer=True)
        if self._phase not in (_Phase.SENDING, _Phase.LISTED) or self._their_end is not None:
            raise self._unexpected(message)
        for identifier in self.inbox.accept(message, reading):
            if self.walk is not None:
                self.walk.wanted.discard(self.walk.short(identifier))
        self._check_wants()
        return []

    def _on_ack(self, message: Ack) -> list[Message]:
        self.outbox.acknowledge(message.count)
        return []

    def _on_list(self, message: List) -> list[Message]:
        if self._may_turn_to_lists():
            self._begin_listed()
        if self.listed is None or self._phase is not _Phase.LISTED or self.inbox.page:
            raise self._unexpected(message)
        self.listed.receive(message)
        return []

    def _on_lack(self, message: Lack) -> list[Message]:
        if self._may_turn_to_lists() and not message.bitmap:
            return self._begin_listing(message.after)
        if self._lister is None:
            raise self._unexpected(message)
        self.outbox.add(self._lister.answered(message))
        return []

    def _on_end(self, message: End) -> list[Message]:
        if self._phase is _Phase.OPENED and message.root is None:
            self.finish("equal")
            return []
        if self._sent_end is not None:
            root = self._sent_end.root if message.root is None else message.root
            self.finish("equal" if root == self._state.sync_root else "unequal")
            return []
        is_due = self._phase is _Phase.SENDING or (self._lister is not None and self._lister.is_complete)
        if (
            not is_due
            or self._is_closer
            or message.root is None
            or self.outbox
            or self._their_end is not None
        ):
            raise self._unexpected(message)
        if self.inbox.left_count:
            raise MalformedMessageError(f"an END leaves {self.inbox.left_count} operations unsent.")
        self.inbox.announce(0)
        self._check_wants()
        self._their_end = message
        return []

    def _on_busy(self, message: Busy) -> list[Message]:
        if self._phase is not _Phase.OPENED:
            raise self._unexpected(message)
        self.retry_after_s = max(message.retry_after_ms / 1000, SYNC_RETRY_AFTER_S)
        self.finish("failed")
        return []

    def _may_turn_to_lists(self) -> bool:
        return self._phase in (_Phase.OPENED, _Phase.WALKING) and not self._is_asked

    # --- phases ---------------------------------------------------------------------------------------

    def _begin_walk(self, key: bytes) -> None:
        self._key = key
        self.walk = Walk(self._state.trie.copy(), key, is_first=not self._is_initiator)
        self._phase = _Phase.WALKING

    def _answer(self) -> list[Message]:
        """Return our step of the walk, or a list where the walk has grown too long or too wide."""
        assert self.walk is not None, "the walk has begun"
        is_first = self.round_count == 0 and not self._is_initiator
        self.round_count += 1
        entries = self.walk.step()
        is_asking = any(not isinstance(entry, Wanted) for entry in entries)
        if not is_asking:
            self._close_walk(is_closer=False)
            if not entries and self.outbox:
                return []  # The first OPERATIONS say as much.
        pages = _paged(entries)
        if is_asking and (
            self.round_count > SYNC_ROUNDS_MAX or len(pages) * CONTROL_BODY_BYTES_MAX > SYNC_STEP_BYTES_MAX
        ):
            return self._give_up_walk()
        return [
            Nodes(
                session=self.session,
                nonce=self._nonce if is_first and number == 1 else b"",
                is_last=number == len(pages),
                left_count=len(self.outbox),
                entries=tuple(page),
            )
            for number, page in enumerate(pages, 1)
        ]

    def _give_up_walk(self) -> list[Message]:
        """Go over to a list; the key decides whose, so that further sessions serve both directions."""
        if self._key[0] & 1:
            return self._begin_listing(None)
        self._begin_listed()
        return [Lack(session=self.session, bitmap=b"")]

    def _close_walk(self, *, is_closer: bool) -> None:
        """Go on to send; the side that answers the last question is the finisher, the other the closer."""
        assert self.walk is not None, "the walk has begun"
        self._phase = _Phase.SENDING
        self._is_closer = is_closer
        self.outbox.add(self._state.causal(self.walk.to_send))
        self.walk.to_send.clear()

    def _begin_listing(self, after: bytes | None) -> list[Message]:
        self.walk = None
        self._phase = _Phase.LISTING
        self._lister = Lister(self._state, self.session, after)
        return []

    def _begin_listed(self) -> None:
        self.walk = None
        self._phase = _Phase.LISTED
        self._is_closer = True
        self.listed = Listed(self._state, self.session)

    def advance(self) -> list[Message]:
        """Return everything that has become possible."""
        messages: list[Message] = [*self.outbox.fill(), *self.inbox.acknowledgement()]
        if self._lister is not None and not (
            self.outbox or self._lister.is_waiting or self._lister.is_complete
        ):
            messages.append(self._lister.next_page())
        if not self.inbox.is_idle:
            return messages
        if self.listed is not None and not self.inbox.page:
            messages += self._answer_page(self.listed)
        if self._is_closer and self._sent_end is None and self._is_all_here() and not self.outbox:
            self._sent_end = End(session=self.session, root=self._state.sync_root)
            messages.append(self._sent_end)
        if self._their_end is not None:
            messages.append(self._compare(self._their_end))
        return messages

    def _answer_page(self, listed: Listed) -> list[Message]:
        answer = listed.answer()
        if answer is None:
            listed.settle()
            return []
        lack, self.inbox.page = answer
        self.inbox.announce(len(self.inbox.page))
        return [lack]

    def _is_all_here(self) -> bool:
        """Tell whether the finisher, or lister, has sent all that it announced."""
        if self.listed is not None:
            return self.listed.is_complete and not self.inbox.page
        return self.inbox.left_count == 0

    def _check_wants(self) -> None:
        """Refuse an announced end of the operations while some that we asked for have not come."""
        if self.walk is not None and self.walk.wanted and self.inbox.left_count == 0:
            raise MalformedMessageError(f"{len(self.walk.wanted)} listed operations were not sent.")

    def _compare(self, theirs: End) -> Message:
        if theirs.root == self._state.sync_root:
            return self._end_as_equal()
        self.finish("unequal")
        return End(session=self.session, root=self._state.sync_root)

    def _end_as_equal(self) -> End:
        self.finish("equal")
        return End(session=self.session, root=None)

    def finish(self, outcome: str) -> None:
        """End the session; its first outcome stays."""
        if self._phase is not _Phase.FINISHED:
            self._phase = _Phase.FINISHED
            self.outcome = outcome

    def _unexpected(self, message: SyncMessage) -> MalformedMessageError:
        return MalformedMessageError(f"{type(message).__name__} while {self._phase.value}.")


def _paged(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return entries in pages that fit a frame; at least one page, which may be empty."""
    pages: list[list[Entry]] = [[]]
    room = _FRAME_ENTRY_BYTES
    for entry in entries:
        size = len(entry.encode())
        if size > room and pages[-1]:
            pages.append([])
            room = _FRAME_ENTRY_BYTES
        room -= size
        pages[-1].append(entry)
    return pages
