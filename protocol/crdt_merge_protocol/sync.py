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

from collections.abc import Iterable
from typing import NamedTuple

from .errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .limits import SYNC_PROGRESS_TIMEOUT_S
from .messages.base import Message
from .messages.sync import NONCE_BYTES
from .reading import Reading
from .sync_exchange import Exchange
from .sync_stream import PastMissingError, SyncView

__all__ = ["SyncCounters", "SyncSession", "SyncView"]


class SyncCounters(NamedTuple):
    """What a session has cost this side so far."""

    sent_count: int
    """Operations."""
    sent_bytes: int
    """Bytes of operations, framing aside."""
    received_count: int
    received_bytes: int
    round_count: int
    """Steps of the walk, of both sides."""
    comparison_count: int
    """Short digests and ids compared."""


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
        excluded_count: int = 0,
    ) -> None:
        """Prepare a session.

        Args:
            state: The replicated state; only read.
            session: 4 random bytes of the initiator (up to 16 work, but every message repeats them).
            initiator: Whether this side sends OPEN.
            nonce: At least 8 random bytes of this side, of which 8 travel.
            now: Monotonic seconds.
            after: ``cursor`` of an earlier session with this peer that broke off.
            excluded_count: How many operations the other side is known to have that are not kept here.

        Raises:
            LocalProtocolError: The nonce is too short.
        """
        if len(nonce) < NONCE_BYTES:
            raise LocalProtocolError(f"a nonce of {len(nonce)} bytes, at least {NONCE_BYTES} are needed.")
        self.session = session
        self.deadline = now + SYNC_PROGRESS_TIMEOUT_S
        """When the session has failed, unless it makes progress before."""
        self.failure: RemoteProtocolError | None = None
        """What the other side did, or failed to do, if the outcome is ``failed`` and it was not busy."""
        self._is_initiator = initiator
        self._is_resumed = after is not None
        self._exchange = Exchange(
            state=state,
            session=session,
            is_initiator=initiator,
            nonce=nonce[:NONCE_BYTES],
            after=after,
            excluded_count=excluded_count,
        )

    @property
    def outcome(self) -> str:
        """``equal``, ``unequal`` or ``failed`` once finished. Unequal: open another session."""
        return self._exchange.outcome

    @property
    def is_finished(self) -> bool:
        """Whether the session is over and takes no more messages."""
        return bool(self._exchange.outcome)

    @property
    def retry_after_s(self) -> float:
        """How long to wait if the other side was busy, else 0."""
        return self._exchange.retry_after_s

    @property
    def cursor(self) -> bytes | None:
        """Where a list broke off: hand it to the next session with this peer as ``after``."""
        listed = self._exchange.listed
        return listed.cursor if listed is not None and self.outcome in ("", "failed") else None

    @property
    def counters(self) -> SyncCounters:
        """What the session has cost so far."""
        outbox, inbox, walk = self._exchange.outbox, self._exchange.inbox, self._exchange.walk
        return SyncCounters(
            sent_count=outbox.sent_count,
            sent_bytes=outbox.sent_bytes,
            received_count=inbox.received_count,
            received_bytes=inbox.received_bytes,
            round_count=self._exchange.round_count,
            comparison_count=walk.comparison_count if walk is not None else 0,
        )

    def start(self) -> list[Message]:
        """Return the OPEN of the initiator."""
        if not self._is_initiator or self._exchange.is_begun:
            raise LocalProtocolError("only the initiator starts a session, and once.")
        return [self._exchange.open()]

    def receive(self, message: Message, *, now: float, reading: Reading | None = None) -> list[Message]:
        """Take in a message of the other side and return the answers.

        Received operations are then to be had from :meth:`take_operations`.

        Args:
            message: The message.
            now: Monotonic seconds.
            reading: What is known of its operations already.

        Raises:
            RemoteProtocolError: The message breaks the rules; the session has failed.
        """
        try:
            if self.is_finished or getattr(message, "session", None) != self.session:
                raise MalformedMessageError(f"{type(message).__name__} belongs to no session under way.")
            replies = self._exchange.handle(message, reading or Reading())
            if not self.is_finished:
                replies += self._exchange.advance()
        except RemoteProtocolError as error:
            if isinstance(error, PastMissingError) and self._is_resumed and self._exchange.listed is not None:
                # What came to the other side since we broke off may lie before the cursor. Not its fault.
                self._exchange.finish("unequal")
                return []
            self._fail(error)
            raise
        self.deadline = now + SYNC_PROGRESS_TIMEOUT_S
        return replies

    def take_operations(self) -> list[bytes]:
        """Return the operations received since the last call, in causal order: verify, store, apply them."""
        return self._exchange.inbox.take()

    def stored(self, ids: Iterable[bytes], *, now: float) -> list[Message]:
        """Note that operations are durable and applied, whoever brought them; return what can be sent now.

        Never raises: if this brings to light that the other side broke the rules, the session has failed.
        """
        if self.is_finished or not self._exchange.inbox.settle(ids):
            return []
        self.deadline = now + SYNC_PROGRESS_TIMEOUT_S
        try:
            return self._exchange.advance()
        except RemoteProtocolError as error:
            self._fail(error)
            return []

    def expire(self, now: float) -> bool:
        """End the session as failed if its deadline has passed; return whether it is over."""
        if not self.is_finished and now >= self.deadline:
            self._fail(RemoteProtocolError(f"no progress while {self._exchange.phase}."))
        return self.is_finished

    def _fail(self, error: RemoteProtocolError) -> None:
        self.failure = self.failure or error
        self._exchange.finish("failed")
