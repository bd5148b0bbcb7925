"""Connections between simulated nodes: in order, with delay, and everything that may go wrong on the way.

A connection is two :class:`Line` objects, one per direction. Each end knows it until it closes it or learns
that it is over; what arrives at an end that no longer knows the connection is lost. Rules:

1. Frames of a line arrive in the order in which they were sent, each after the delay of the link.
2. A cut holds frames back, as TCP does; after about four seconds of silence both ends give up, as the
   liveness checks of the transport do (PING_IDLE_S, PING_MISSES_MAX). Nobody can connect across a cut.
3. A killed process is known to its peers after one delay (the kernel resets); a machine without power, only
   after the silence.
4. Frames are bytes, handed over with the message that they say (``sharing.py``). A frame that was tampered
   with goes through a real decoder, and so does everything after it on that line; what the decoder refuses
   closes the connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from crdt_merge_protocol.limits import PING_IDLE_S, PING_MISSES_MAX
from crdt_merge_protocol.wire import FrameDecoder

if TYPE_CHECKING:
    from .engine_node import SimulatedNode
    from .sharing import Frame

SILENCE_S: Final = PING_IDLE_S * (PING_MISSES_MAX + 1)
"""After which an end takes the other for dead."""
SYN_RETRIES_S: Final = (1.0, 3.0)
CONNECT_TIMEOUT_S: Final = 5.0


class Line:
    """One direction of a connection."""

    __slots__ = (
        "arrived",
        "back",
        "busy_until",
        "decoder",
        "delay_s",
        "held",
        "peer",
        "source",
        "tamper",
        "target",
    )

    back: Line

    def __init__(self, source: SimulatedNode, target: SimulatedNode, delay_s: float) -> None:
        self.source = source
        self.target = target
        self.peer = target.id
        self.delay_s = delay_s
        self.arrived = 0.0
        """When the frame that was sent last arrives."""
        self.busy_until = 0.0
        """Until when bandwidth is used up."""
        self.held: list[Frame] = []
        self.decoder: FrameDecoder | None = None
        self.tamper = 0
        """1: change a byte of the next frame; 2: break off in the middle of it."""

    @property
    def is_open(self) -> bool:
        """Whether the sending end knows this connection."""
        return self.source.lines.get(self.peer) is self


def connect(source: SimulatedNode, target: SimulatedNode, delay_s: float) -> Line:
    """Return the line of a new connection that leads from ``source`` to ``target``."""
    line, back = Line(source, target, delay_s), Line(target, source, delay_s)
    line.back, back.back = back, line
    return line


@dataclass(eq=False, slots=True)
class Cut:
    """A part of the network that cannot be crossed."""

    sides: Mapping[int, int]
    """Node -> side; nodes that are not named are not affected."""
    is_one_way: bool = False
    """Only what goes from a side to one of a greater number is lost."""

    def blocks(self, a: int, b: int) -> bool:
        """Whether nothing gets from node ``a`` to node ``b``."""
        here, there = self.sides.get(a), self.sides.get(b)
        if here is None or there is None:
            return False
        return here < there if self.is_one_way else here != there


@dataclass(slots=True)
class Network:
    """What is wrong with the links at the moment."""

    cuts: list[Cut] = field(default_factory=list)
    extra_s: dict[tuple[int, int], float] = field(default_factory=dict)
    """Directed pair -> additional delay."""
    loss: dict[tuple[int, int], float] = field(default_factory=dict)
    """Directed pair -> share of payload messages that is dropped."""
    loss_everywhere: float = 0.0
    """The same for pairs that are not named."""

    def is_cut(self, a: int, b: int) -> bool:
        """Whether nothing gets from node ``a`` to node ``b``."""
        return any(cut.blocks(a, b) for cut in self.cuts)

    def is_severed(self, a: int, b: int) -> bool:
        """Whether two nodes cannot connect."""
        return bool(self.cuts) and (self.is_cut(a, b) or self.is_cut(b, a))

    def sides(self, count: int) -> list[int]:
        """Return the side of each node, for drawing: that of the newest cut."""
        newest: Mapping[int, Any] = self.cuts[-1].sides if self.cuts else {}
        return [newest.get(node, 0) for node in range(count)]
