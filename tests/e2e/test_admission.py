"""Who may join: a good token once; others are refused, and both sides know why (SCENARIOS T29, B63)."""

import dataclasses
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from crdt_merge_node.local_cluster import Member
from crdt_merge_node.transport.invites import Token
from support.daemons import Harness, cli


def test_a_wrong_token_is_refused_with_the_reason_on_both_sides(harness: Harness) -> None:
    token = Token.from_text(harness.run(harness.members[0].client.invite(expires_s=3600.0)).token)
    forged = dataclasses.replace(token, secret=bytes(16)).to_text()

    refused = cli(harness.files / "forger", "init", "--join", forged, status=5)

    assert "not one of this node's" in refused.stderr
    harness.until(_says(harness.members[0], "not one of this node's"), "the node to say whom it refused")


def test_an_expired_token_is_refused_with_the_reason_on_both_sides(harness: Harness) -> None:
    token = harness.run(harness.members[0].client.invite(expires_s=0.0)).token

    refused = cli(harness.files / "late-comer", "init", "--join", token, status=5)

    assert "expired" in refused.stderr
    harness.until(_says(harness.members[0], "expired"), "the node to say whom it refused")


def test_a_token_admits_one_node(harness: Harness) -> None:
    token = harness.run(harness.members[0].client.invite(expires_s=3600.0)).token
    cli(harness.files / "guest", "init", "--join", token)

    refused = cli(harness.files / "second-guest", "init", "--join", token, status=5)

    assert "used" in refused.stderr
    harness.until(_says(harness.members[0], "used"), "the node to say whom it refused")


def test_a_damaged_token_is_named_as_such(harness: Harness) -> None:
    token = harness.run(harness.members[0].client.invite(expires_s=3600.0)).token
    damaged = token[:-3] + ("aaa" if token[-3:] != "aaa" else "bbb")

    refused = cli(harness.files / "typist", "init", "--join", damaged, status=78)

    assert "damaged" in refused.stderr


def test_a_strangers_certificate_is_refused_with_the_reason_on_both_sides(harness: Harness) -> None:
    """A node of another cluster dials: the TLS handshake fails, and neither side is left guessing."""
    first = harness.members[0]
    stranger = Member("stranger", harness.files / "stranger")
    cli(stranger, "init", "--cluster", "elsewhere")
    Path(stranger.data_dir / "config.toml").write_text(f'[peers]\nseeds = ["127.0.0.1:{first.port}"]\n')
    harness.run(stranger.start())
    try:
        harness.until(_says(stranger, "CA"), "the stranger to learn that it is refused")
        harness.until(_says(first, "CA"), "the node to say whom it refused")
    finally:
        harness.run(stranger.stop())

    assert all(peer.id != stranger.id for peer in harness.run(first.client.peer_list()))


@pytest.mark.parametrize("directory", ["forger", "late-comer", "second-guest", "typist"])
def test_a_refused_join_leaves_no_half_made_node(harness: Harness, directory: str) -> None:
    cli(harness.files / directory, "run", status=4)


def _events(member: Member) -> list[dict[str, str]]:
    whole, _, _ = member.log_path.read_text().rpartition("\n")  # The last line may be half written.
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def _says(member: Member, text: str) -> Callable[[], Awaitable[bool]]:
    """Return a question: has the node refused somebody for this reason by now?"""

    async def says() -> bool:
        return any(text in reason for reason in _refusals(member))

    return says


def _refusals(member: Member) -> list[str]:
    return [event["reason"] for event in _events(member) if event["event"] == "peer.refused"]
