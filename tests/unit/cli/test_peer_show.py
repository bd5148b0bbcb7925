"""``peer show``: one screen about one peer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from crdt_merge_node.cli.peer_detail import lacks_text
from crdt_merge_node.control.model import PeerDetail
from support import nodes
from support.nodes import FakeNode

SCREEN = """\
alive  peer b2b2b2b2b2b2 beta, for 1 min
  id           {peer}
  addresses    10.0.0.2:7946
  version      crdt-merge-node/0.1.0, wire versions 1 to 1
  certificate  valid until 2027-04-25 08:00 UTC, 100 days left
  connection   10.0.0.2:7946, direct; this node dialled 1 h ago
  round trip   12.5 ms
  bytes        1000 B in, 2.0 KiB out since the start, 2.0 KiB wait to be sent
  missing here  3.0 MiB of 1 contribution by it

  GROUP   DIFFERENCE                    LAST EXCHANGE  OUTCOME  OPERATIONS          TOOK   REASON
  digits  we lack 2 operations or more  4 s ago        unequal  1 out, 2 in, 700 B  0.1 s

last 2 events:
       1 min ago  info     peer.joined
         5 s ago  warning  peer.refused          reason=blocked\\x1b[2J count=2 duration_s=0.25
"""


def _words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_it_shows_the_connection_the_difference_and_the_story(run: Any) -> None:
    result = run("peer", "show", "beta")

    assert result.exit_code == 0, result.stderr
    assert _words(result.stdout) == _words(SCREEN.format(peer=nodes.PEER))


def test_a_peer_in_trouble_says_which(run: Any, node: FakeNode) -> None:
    info = dataclasses.replace(nodes.ALIVE, state="suspect", direction="inbound", last_error="it broke")
    node.peer_answer = PeerDetail(
        peer=info,
        now=nodes.NOW,
        remote="10.0.0.2:50000",
        connected_since=nodes.NOW - 60,
        certificate_expires=nodes.NOW - 1,
        suspected_since=nodes.NOW - 3,
        accused_by=(nodes.NODE,),
        refusal="it broke the protocol; it may come back in 4 s",
        dial_attempts=14,
    )

    text = run("peer", "show", "beta").stdout

    assert text.startswith("suspect  peer b2b2b2b2b2b2 beta")
    assert "for 3.0 s, by a1a1a1a1a1a1" in text
    assert "it broke the protocol; it may come back in 4 s" in text
    assert "14 dials in a row without success" in text
    assert "the peer dialled 1 min ago" in text
    assert "not measured yet" in text
    assert "EXPIRED" in text
    assert "no event of late names it" in text


@pytest.mark.parametrize(
    ("is_equal", "theirs", "text"),
    [
        (None, None, "it has announced no root"),
        (True, 7, "none"),
        (False, 9, "we lack 2 operations or more"),
        (False, 6, "it lacks 1 operation or more"),
        (False, 7, "each lacks as many as the other"),
    ],
)
def test_the_difference_is_told_as_far_as_roots_tell(is_equal: Any, theirs: Any, text: str) -> None:
    exchange = dataclasses.replace(nodes.DETAIL.exchanges[0], is_equal=is_equal, peer_operations=theirs)

    assert lacks_text(exchange) == text


def test_the_list_has_round_trips(run: Any) -> None:
    assert " RTT " in run("peer", "list").stdout
