"""Metrics of real nodes: named as they should be, described where operators look, and right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from crdt_merge_node.control.model import PeerState, Severity
from crdt_merge_node.errors import StorageError
from crdt_merge_node.telemetry.counters import EXCHANGE_BOUNDS_S, Durations, DurationsBy, kind_of
from crdt_merge_node.telemetry.metrics import CONTENT_TYPE, render
from crdt_merge_protocol.messages.base import REGISTRY
from crdt_merge_protocol.messages.membership import Ping, Pong
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from support.whole_nodes import Site, WholeNode, save_model, until_agreed

README = Path(__file__).parents[2] / "node" / "README.md"
LABELS = {"state", "direction", "kind", "outcome", "reason", "strategy", "severity", "level", "le"}
BUILD_LABELS = {"version", "wire_version", "python"}
UNITS = ("_seconds", "_bytes", "_ratio", "_info", "_total", "_seconds_max")
WITHOUT_UNIT = {
    "peers",
    "groups",
    "operations",
    "contributions",
    "tombstones",
    "banned_contents",
    "erasures_pending",
    "missing_contributions",
    "effects_queue_length",
    "alarms",
}
"""Counts of what is there."""


def families(node: WholeNode) -> dict[str, Metric]:
    text = render(node.services).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def own(node: WholeNode) -> Iterator[Metric]:
    """Yield what is ours, under the names as people write them."""
    for name, family in families(node).items():
        if not name.startswith(("process_", "python_")):
            if family.type == "counter":  # The parser leaves out the end of its name.
                family.name += "_total"
            yield family


def value(node: WholeNode, sample: str, **labels: str) -> float:
    """Return one sample; 0 if there is none."""
    for family in families(node).values():
        for each in family.samples:
            if (each.name, each.labels) == (f"crdt_merge_{sample}", labels):
                return each.value
    return 0.0


async def _work(nodes: list[WholeNode], tmp_path: Path) -> None:
    """Contribute on every node, remove one contribution, and resolve."""
    await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0))
    for number, node in enumerate(nodes):
        await node.add("g", save_model(tmp_path / f"m{number}", number), slot="kept")
        await until_agreed("g", *nodes, used=number + 1)
    await nodes[0].add("g", save_model(tmp_path / "gone", 9.0), slot="gone")
    await nodes[0].api.contribution_remove("g", "gone")
    await until_agreed("g", *nodes, used=len(nodes))
    await nodes[0].resolve("g", tmp_path / "out.safetensors")


@pytest.mark.asyncio
async def test_names_units_labels_and_help_follow_the_rules(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await _work(nodes, tmp_path)
        found = list(own(nodes[0]))

    assert found
    for family in found:
        name = family.name
        assert re.fullmatch(r"crdt_merge_[a-z]+(_[a-z]+)*", name), name
        assert (family.type == "counter") == name.endswith("_total"), name
        assert name.endswith(UNITS) or name.removeprefix("crdt_merge_") in WITHOUT_UNIT, name
        if "timestamp" in name:
            assert name.endswith("_timestamp_seconds"), name
        assert re.fullmatch(r"[A-Z].*[.0-9a-z)]", family.documentation), name
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= (BUILD_LABELS if name.endswith("_info") else LABELS), name


@pytest.mark.asyncio
async def test_every_name_is_described_in_the_readme_and_no_other(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        names = {family.name for family in own(nodes[0])}

    described = set(re.findall(r"^\| `(crdt_merge_\w+)", README.read_text(), flags=re.MULTILINE))
    assert described == names


@pytest.mark.asyncio
async def test_what_one_node_sends_the_other_receives(tmp_path: Path) -> None:
    def told(counts: Counter[type]) -> dict[type, int]:
        return {kind: count for kind, count in counts.items() if kind not in (Ping, Pong)}

    async with Site(tmp_path).nodes(2) as nodes:
        a, b = nodes
        await _work(nodes, tmp_path)
        one, other = a.services.endpoint.traffic, b.services.endpoint.traffic
        await b.until(
            lambda: told(one.sent) == told(other.received) and told(other.sent) == told(one.received)
        )

        assert value(a, "messages_total", direction="out", kind="gossip") >= 1
        sent = value(a, "messages_total", direction="out", kind="roots")
        assert sent == value(b, "messages_total", direction="in", kind="roots") >= 1
        for kind in ("gossip", "bulk"):
            for direction in ("in", "out"):
                assert value(a, "bytes_total", direction=direction, kind=kind) > 0, (kind, direction)
        assert value(a, "messages_shed_total") == 0


@pytest.mark.asyncio
async def test_numbers_are_those_of_the_node(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await _work(nodes, tmp_path)
        a, b = nodes
        await a.equal("g", b)

        assert value(a, "peers", state="alive") == 1
        assert sum(value(a, "peers", state=state) for state in PeerState) == 1
        assert value(a, "converged_peers_ratio") == 1
        assert value(a, "contributions", state="used") == 2
        assert value(a, "tombstones") == 1
        assert value(a, "missing_contributions") == value(a, "missing_blob_bytes") == 0
        assert value(a, "groups") == 1
        assert value(a, "operations") == (await a.info("g")).operations
        assert value(a, "store_bytes", kind="blobs") == a.services.store.blobs.total_bytes()
        assert value(a, "store_bytes", kind="database") > 0
        assert value(a, "last_exchange_timestamp_seconds") >= value(a, "start_timestamp_seconds")
        assert value(a, "certificate_expiry_timestamp_seconds") > a.services.clock.now()
        labels = {"strategy": "weight_average", "outcome": "done"}
        assert value(a, "resolve_duration_seconds_count", **labels) == 1
        assert value(a, "events_total", level="info") == a.services.events.counts["info"] > 0
        assert all(value(a, "alarms", severity=severity) == 0 for severity in Severity)


@pytest.mark.asyncio
async def test_what_is_missing_and_what_fails_shows(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        a = nodes[0]
        await a.create_group("g", save_model(tmp_path / "like", 1.0))
        await a.add("g", save_model(tmp_path / "m", 1.0))
        tag, _ = await a.withhold("g")
        await a.until_blobs_missing("g", tag)
        output = tmp_path / "absent" / "out"
        with pytest.raises(StorageError):
            await a.resolve("g", output, without=(tag,))
        a.services.driver.refused("10.0.0.1:1", "who is this")
        a.services.driver.counters.offences["E1201"] += 1
        a.services.driver.counters.offences["E9999"] += 1

        assert value(a, "missing_contributions") == 1
        assert value(a, "missing_blob_bytes") > 0
        assert value(a, "contributions", state="missing") == 1
        labels = {"strategy": "weight_average", "outcome": "failed"}
        assert value(a, "resolve_duration_seconds_count", **labels) == 1
        assert [event.event for event in a.services.events.read(level="warning")] == ["resolve.failed"]
        assert value(a, "connections_refused_total") == 1
        assert value(a, "protocol_errors_total", reason="malformed") == 1
        assert value(a, "protocol_errors_total", reason="other") == 1


def test_buckets_hold_what_is_at_most_their_bound() -> None:
    durations = Durations((0.1, 1.0))
    for duration_s in (0.05, 0.1, 0.5, 1.0, 7.0):
        durations.add(duration_s)

    assert durations.counts == [2, 2, 1]
    assert durations.sum_s == pytest.approx(8.65)


def test_kinds_of_durations_are_made_as_they_come() -> None:
    by = DurationsBy[str](EXCHANGE_BOUNDS_S)
    by.add("equal", 0.5)
    by.add("equal", 0.5)
    by.add("failed", 100.0)

    assert {key: sum(found.counts) for key, found in by.all.items()} == {"equal": 2, "failed": 1}


def test_kinds_of_messages_have_different_names() -> None:
    names = [kind_of(message_class) for message_class in REGISTRY.values()]

    assert len(set(names)) == len(names)
    assert "want_chunk_list" in names
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)


def test_the_content_type_is_that_of_the_text_format() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=")
