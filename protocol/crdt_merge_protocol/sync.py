"""Anti-entropy: two nodes make their sets of operations equal (PROTOCOL 2). A pure state machine.

Theory of operation. The initiator opens with its root. Equal roots end the session with one answer. Otherwise
the two sides walk their tries to the differences (``sync_walk.py``), or, if one has over 1,024 more than the
other, the fuller one lists what it has (``sync_list.py``). Then each sends what the other lacks, in
(depth, id) order so that nothing waits for its past, and both compare full roots.

    initiator                                     responder
    OPEN root                        ->
                                     <-           END                             if the roots are equal
                                     <-           NODES (nonce, root of the walk)
    NODES                            ->           …taking turns, until one side asks nothing more:
                                     <-           NODES (wants) OPERATIONS…       the *finisher*
    OPERATIONS… END root             ->           the *closer*, once all it got is durable
                                     <-           END                             both roots are known now

    OPEN root                        ->
                                     <-           LIST                            if the responder is fuller
    LACK                             ->           …page by page, each with its OPERATIONS…
    END root                         ->                                           the closer is who was told

Rules of the file:

1. One object is one session. It works on a snapshot; what enters the state meanwhile makes the final roots
   differ, and the caller opens another session, with other nonces.
2. Nothing is sent twice, and nothing is sent that the other side has in its snapshot. A peer that does is in
   error, as is one that wants what was not listed, answers what was not asked, sends before its past, or says
   that it is done while it owes something (SCENARIOS B39-B44).
3. Every message must bring the session closer to its end, so no peer can keep one alive for ever: places of
   the walk get longer, pages of a list ascend, announced counts shrink. A silent peer meets the deadline.
4. What a peer claims about its root never changes our state; at worst the session calls equal what is not,
   which every other peer's root contradicts (SCENARIOS T12).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from .errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .limits import (
    CONTROL_BODY_BYTES_MAX,
    SYNC_LIST_THRESHOLD,
    SYNC_PROGRESS_TIMEOUT_S,
    SYNC_RETRY_AFTER_S,
    SYNC_ROUNDS_MAX,
    SYNC_STEP_BYTES_MAX,
)
from .messages.base import Message
from .messages.sync import NONCE_BYTES, Ack, Busy, End, Lack, List, Nodes, Open, Operations, SyncMessage
from .messages.walk import Entry, Wanted
from .sync_list import Listed, Lister
from .sync_stream import Inbox, Outbox, PastMissingError, SyncView
from .sync_walk import Walk, session_key

__all__ = ["SyncSession", "SyncView"]

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


class SyncSession:
    """One side of one session. Feed it messages and durable ids, send what it returns, in order."""

    def __init__(
        self,
        *,
        state: SyncView,
        session: bytes,
        initiator: bool,
        nonce: bytes,
        now: float,
        after: bytes | None = None,
    ) -> None:
        """Prepare a session.

        Args:
            state: The replicated state; only read.
            session: 4 random bytes of the initiator (up to 16 work, but every message repeats them).
            initiator: Whether this side sends OPEN.
            nonce: At least 8 random bytes of this side, of which 8 travel.
            now: Monotonic seconds.
            after: ``cursor`` of an earlier session with this peer that broke off.
        """
        if len(nonce) < NONCE_BYTES:
            raise LocalProtocolError(f"a nonce of {len(nonce)} bytes, at least {NONCE_BYTES} are needed.")
        self.session = session
        self.outcome = ""
        """``equal``, ``unequal`` or ``failed`` once finished. Unequal: open another session."""
        self.failure: RemoteProtocolError | None = None
        """What the other side did, or failed to do, if the outcome is ``failed`` and it was not busy."""
        self.deadline = now + SYNC_PROGRESS_TIMEOUT_S
        """When the session has failed, unless it makes progress before."""
        self.retry_after_s = 0.0
        """How long to wait if the other side was busy."""
        self.round_count = 0
        """Steps of the walk, of both sides."""
        self._state = state
        self._is_initiator = initiator
        self._nonce = nonce[:NONCE_BYTES]
        self._after = after
        self._phase = _Phase.NEW
        self._opened_root = b""
        self._walk: Walk | None = None
        self._is_asked = False
        """Whether the other side's step, so far, asks anything."""
        self._is_closer = False
        self._sent_end: End | None = None
        self._their_end: End | None = None
        self._lister: Lister | None = None
        self._listed: Listed | None = None
        self._outbox = Outbox(session)
        self._inbox = Inbox(state, session)

    # --- for the caller -------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Whether the session is over and takes no more messages."""
        return self._phase is _Phase.FINISHED

    @property
    def cursor(self) -> bytes | None:
        """Where a list broke off: hand it to the next session with this peer as ``after``."""
        return self._listed.cursor if self._listed is not None and self.outcome != "equal" else None

    @property
    def sent_count(self) -> int:
        """Operations sent."""
        return self._outbox.sent_count

    @property
    def sent_bytes(self) -> int:
        """Bytes of the operations sent, framing aside."""
        return self._outbox.sent_bytes

    @property
    def received_count(self) -> int:
        """Operations received."""
        return self._inbox.received_count

    @property
    def received_bytes(self) -> int:
        """Bytes of the operations received, framing aside."""
        return self._inbox.received_bytes

    @property
    def comparison_count(self) -> int:
        """Short digests and ids compared on this side."""
        return self._walk.comparison_count if self._walk is not None else 0

    def start(self) -> list[Message]:
        """Return the OPEN of the initiator."""
        if not self._is_initiator or self._phase is not _Phase.NEW:
            raise LocalProtocolError("only the initiator starts a session, and once.")
        self._phase = _Phase.OPENED
        self._opened_root = self._state.sync_root
        return [
            Open(
                session=self.session,
                group=self._state.group,
                root=self._opened_root,
                count=len(self._state),
                nonce=self._nonce,
                after=self._after,
            )
        ]

    def receive(self, message: Message, *, now: float) -> list[Message]:
        """Take in a message of the other side and return the answers.

        Received operations are then to be had from :meth:`take_operations`.

        Raises:
            RemoteProtocolError: The message breaks the rules; the session has failed.
        """
        try:
            if self.is_finished or getattr(message, "session", None) != self.session:
                raise MalformedMessageError(f"{type(message).__name__} belongs to no session under way.")
            replies = self._dispatch(message)
            if not self.is_finished:
                replies += self._advance()
        except RemoteProtocolError as error:
            if isinstance(error, PastMissingError) and self._listed is not None and self._after is not None:
                # What came to the other side since we broke off may lie before the cursor. Not its fault.
                self._listed = None
                self._finish("unequal")
                return []
            self._fail(error)
            raise
        self.deadline = now + SYNC_PROGRESS_TIMEOUT_S
        return replies

    def take_operations(self) -> list[bytes]:
        """Return the operations received since the last call, in causal order: verify, store, apply them."""
        return self._inbox.take()

    def stored(self, ids: Iterable[bytes], *, now: float) -> list[Message]:
        """Note that operations are durable and applied, whoever brought them; return what can be sent now.

        Never raises: if this brings to light that the other side broke the rules, the session has failed.
        """
        if self.is_finished or not self._inbox.settle(ids):
            return []
        self.deadline = now + SYNC_PROGRESS_TIMEOUT_S
        try:
            return self._advance()
        except RemoteProtocolError as error:
            self._fail(error)
            return []

    def expire(self, now: float) -> bool:
        """End the session as failed if its deadline has passed; return whether it is over."""
        if not self.is_finished and now >= self.deadline:
            self._fail(RemoteProtocolError(f"no progress while {self._phase.value}."))
        return self.is_finished

    # --- messages -------------------------------------------------------------------------------------

    def _dispatch(self, message: Message) -> list[Message]:
        match message:
            case Open():
                replies = self._on_open(message)
            case Nodes():
                replies = self._on_nodes(message)
            case Operations():
                replies = self._on_operations(message)
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
        surplus = len(self._state) - message.count
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
        assert self._walk is not None, "the phase"
        for entry in message.entries:
            self._walk.absorb(entry)
            self._is_asked |= not isinstance(entry, Wanted)
        if not message.is_last:
            return []
        self.round_count += 1
        if self._is_asked:
            self._is_asked = False
            return self._answer()
        self._inbox.announce(message.left_count)
        self._close_walk(is_closer=True)
        self._check_wants()
        return []

    def _on_operations(self, message: Operations) -> list[Message]:
        if self._phase is _Phase.WALKING and not self._is_asked:
            self._close_walk(is_closer=True)
        if self._phase not in (_Phase.SENDING, _Phase.LISTED) or self._their_end is not None:
            raise self._unexpected(message)
        for identifier in self._inbox.accept(message):
            if self._walk is not None:
                self._walk.wanted.discard(self._walk.short(identifier))
        self._check_wants()
        return []

    def _on_ack(self, message: Ack) -> list[Message]:
        self._outbox.acknowledge(message.count)
        return []

    def _on_list(self, message: List) -> list[Message]:
        if self._phase in (_Phase.OPENED, _Phase.WALKING) and not self._is_asked:
            self._begin_listed()
        if self._listed is None or self._phase is not _Phase.LISTED or self._inbox.page:
            raise self._unexpected(message)
        self._listed.receive(message)
        return []

    def _on_lack(self, message: Lack) -> list[Message]:
        if self._phase is _Phase.OPENED and not message.bitmap:
            return self._begin_listing(message.after)
        if self._lister is None:
            raise self._unexpected(message)
        self._outbox.add(self._lister.answered(message))
        return []

    def _on_end(self, message: End) -> list[Message]:
        if self._phase is _Phase.OPENED and message.root is None:
            self._finish("equal")
            return []
        if self._sent_end is not None:
            root = self._sent_end.root if message.root is None else message.root
            self._finish("equal" if root == self._state.sync_root else "unequal")
            return []
        is_due = self._phase is _Phase.SENDING or (self._lister is not None and self._lister.is_complete)
        if (
            not is_due
            or self._is_closer
            or message.root is None
            or self._outbox
            or self._their_end is not None
        ):
            raise self._unexpected(message)
        if self._inbox.left_count:
            raise MalformedMessageError(f"an END leaves {self._inbox.left_count} operations unsent.")
        self._inbox.announce(0)
        self._check_wants()
        self._their_end = message
        return []

    def _on_busy(self, message: Busy) -> list[Message]:
        if self._phase is not _Phase.OPENED:
            raise self._unexpected(message)
        self.retry_after_s = max(message.retry_after_ms / 1000, SYNC_RETRY_AFTER_S)
        self._finish("failed")
        return []

    # --- phases ---------------------------------------------------------------------------------------

    def _begin_walk(self, key: bytes) -> None:
        self._walk = Walk(self._state.trie.copy(), key, is_first=not self._is_initiator)
        self._phase = _Phase.WALKING

    def _answer(self) -> list[Message]:
        """Return our step of the walk, or a list where the walk has grown too long or too wide."""
        assert self._walk is not None, "the walk has begun"
        is_first = self.round_count == 0 and not self._is_initiator
        self.round_count += 1
        entries = self._walk.step()
        is_asking = any(not isinstance(entry, Wanted) for entry in entries)
        if not is_asking:
            self._close_walk(is_closer=False)
            if not entries and self._outbox:
                return []  # The first OPERATIONS say as much.
        pages = _paged(entries)
        if is_asking and (
            self.round_count > SYNC_ROUNDS_MAX or len(pages) * CONTROL_BODY_BYTES_MAX > SYNC_STEP_BYTES_MAX
        ):
            return self._begin_listing(None)
        return [
            Nodes(
                session=self.session,
                nonce=self._nonce if is_first and number == 1 else b"",
                is_last=number == len(pages),
                left_count=len(self._outbox),
                entries=tuple(page),
            )
            for number, page in enumerate(pages, 1)
        ]

    def _close_walk(self, *, is_closer: bool) -> None:
        """Go on to send; the side that answers the last question is the finisher, the other the closer."""
        assert self._walk is not None, "the walk has begun"
        self._phase = _Phase.SENDING
        self._is_closer = is_closer
        self._outbox.add(self._state.causal(self._walk.to_send))
        self._walk.to_send.clear()

    def _begin_listing(self, after: bytes | None) -> list[Message]:
        self._walk = None
        self._phase = _Phase.LISTING
        self._lister = Lister(self._state, self.session, after)
        return []

    def _begin_listed(self) -> None:
        self._walk = None
        self._phase = _Phase.LISTED
        self._is_closer = True
        self._listed = Listed(self._state, self.session)

    def _advance(self) -> list[Message]:
        """Return everything that has become possible."""
        messages: list[Message] = [*self._outbox.fill(), *self._inbox.acknowledgement()]
        if self._lister is not None and not (
            self._outbox or self._lister.is_waiting or self._lister.is_complete
        ):
            messages.append(self._lister.next_page())
        if not self._inbox.is_idle:
            return messages
        if self._listed is not None and not self._inbox.page:
            messages += self._answer_page(self._listed)
        if self._is_closer and self._sent_end is None and self._is_all_here() and not self._outbox:
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
        lack, self._inbox.page = answer
        self._inbox.announce(len(self._inbox.page))
        return [lack]

    def _is_all_here(self) -> bool:
        """Tell whether the finisher, or lister, has sent all that it announced."""
        if self._listed is not None:
            return self._listed.is_complete and not self._inbox.page
        return self._inbox.left_count == 0

    def _check_wants(self) -> None:
        """Refuse an announced end of the operations while some that we asked for have not come."""
        if self._walk is not None and self._walk.wanted and self._inbox.left_count == 0:
            raise MalformedMessageError(f"{len(self._walk.wanted)} listed operations were not sent.")

    def _compare(self, theirs: End) -> Message:
        if theirs.root == self._state.sync_root:
            return self._end_as_equal()
        self._finish("unequal")
        return End(session=self.session, root=self._state.sync_root)

    def _end_as_equal(self) -> End:
        self._finish("equal")
        return End(session=self.session, root=None)

    def _fail(self, error: RemoteProtocolError) -> None:
        self.failure = self.failure or error
        self._finish("failed")

    def _finish(self, outcome: str) -> None:
        if not self.is_finished:
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
