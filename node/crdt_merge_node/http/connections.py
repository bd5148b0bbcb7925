"""One client's connection: a bound on how long a request, an answer and an idle line may take.

uvicorn bounds the size of a request's head and how long a line may idle after an answer. What it leaves open
is closed here: a head that never ends (Slowloris), a client that does not read what it asked for, and more
connections than this daemon wants to serve beside its real work.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS_MAX: Final = 64
"""A browser opens six, a probe one. Each costs a file descriptor and some 30 KiB."""
HEAD_S: Final = 10.0
"""Within which the head of a request must have come."""
STALL_S: Final = 30.0
"""For which a client may leave unread what was written for it."""
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 21\r\n"
    b"connection: close\r\n\r\ntoo many connections\n"
)


class BoundedConnection(H11Protocol):
    """uvicorn's connection with deadlines, and room for so many."""

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Serve it, or say that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.write(_REFUSAL)
            transport.close()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a new request must be whole in time."""
        before: Any = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._forget_head()
        elif self.cycle is None or self.cycle.response_complete:
            self._expect_head()

    def pause_writing(self) -> None:
        """Note that the client does not keep up; it has a while to go on."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it reads again."""
        super().resume_writing()
        self._forget_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._forget_head()
        self._forget_stall()
        super().connection_lost(exc)

    def _forget_head(self) -> None:
        _stop(self._head_timer)
        self._head_timer = None

    def _forget_stall(self) -> None:
        _stop(self._stall_timer)
        self._stall_timer = None

    def _expect_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer, if there is one."""
    if timer is not None:
        timer.cancel()
