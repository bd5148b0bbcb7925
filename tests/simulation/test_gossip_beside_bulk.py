"""Gossip beside a transfer that fills the link: what a node puts before its own messages (TARGETS C6)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bulk_link import gossip_beside_bulk

GIGABIT = 125e6


@pytest.mark.parametrize(
    ("bytes_per_s", "latency_s"),
    [
        pytest.param(GIGABIT, 0.010, id="1 Gbit/s, 10 ms"),
        pytest.param(10 * GIGABIT, 0.0005, id="10 Gbit/s, 0.5 ms"),
    ],
)
def test_c6_beside_bulk_that_fills_the_link_messages_take_at_most_twice_as_long(
    tmp_path: Path, bytes_per_s: float, latency_s: float
) -> None:
    figures = gossip_beside_bulk(tmp_path, bytes_per_s=bytes_per_s, latency_s=latency_s, blob_mib=128)

    assert figures.busy_p99_s <= 2 * figures.idle_p99_s
    assert figures.link_share > 0.8, "the link was not full, so nothing was shown"
    assert figures.probes > 100
