"""Anti-entropy: every byte on the wire but the operations themselves (TARGETS A9, A10)."""

from __future__ import annotations

from collections.abc import Iterator

from crdt_merge_protocol.messages.sync import Operations

from tests.support.sync_pair import Pair, share

from .measure import Options, Row, times

COUNT = 10_000
TARGETS_KB = {1: 0.6, 10: 3.5, 100: 18, 1000: 70}
RTT_MAX = 4


def measure(_options: Options) -> Iterator[Row]:
    """Yield a row for equal sets and one per size of the difference."""
    common, _ = share(COUNT, 0, 0)
    pair = Pair(common, common.copy()).run()
    yield Row(
        what=f"sync of two equal sets of {COUNT:,}",
        measured=f"{pair.bytes_of(0)} B out, {pair.bytes_of(1)} B back",
        ratio=f"{pair.turn_count / 2:g} RTT",
        target="<= 100 B each way, <= 1 RTT (A9)",
    )
    for difference, target_kb in TARGETS_KB.items():
        # Half of the difference on either side, of the size that operations have.
        ours, theirs = share(COUNT - difference, difference - difference // 2, difference // 2, size=160)
        pair = Pair(ours, theirs).run()
        assert set(pair.outcomes) == {"equal"}, "what is measured is a sync that succeeds"
        payload = _payload(pair)
        yield Row(
            what=f"sync of {COUNT:,} with {difference:,} differing",
            measured=f"{pair.overhead_bytes / 1000:.2f} KB of overhead",
            against=f"{payload / 1000:,.1f} KB of operations",
            ratio=f"{times((payload + pair.overhead_bytes) / payload)} the operations; "
            f"{pair.turn_count / 2:g} RTT in all",
            target=f"<= {target_kb} KB, <= {RTT_MAX} RTT (A10)",
        )


def _payload(pair: Pair) -> int:
    return sum(
        len(wire)
        for side in pair.sides
        for message in side.sent
        if isinstance(message, Operations)
        for wire in message.operations
    )
