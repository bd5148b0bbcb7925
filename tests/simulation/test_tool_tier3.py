"""Tier 3 in small: whatever the order, one key; equal keys, equal bytes; every message really sent."""

import json
from random import Random

import pytest
from click.testing import CliRunner
from crdt_merge_protocol.strategies import registry
from crdt_merge_simulations import tier3
from crdt_merge_simulations.cli.app import root
from crdt_merge_simulations.sharing import shared_work
from crdt_merge_simulations.tier3_blobs import spread
from crdt_merge_simulations.tier3_cluster import Cluster
from crdt_merge_simulations.tier3_models import Models


@pytest.fixture(scope="module")
def report() -> tier3.Tier3:
    return tier3.run(nodes=20, orderings=3, seed=4, side=16, scales=(2, 5))


def test_all_orders_end_with_one_key_on_all_nodes(report: tier3.Tier3) -> None:
    assert [trial.keys for trial in report.orderings] == [1, 1, 1]
    assert report.distinct_keys == 1
    assert report.is_success


def test_orders_differ_in_all_that_must_not_matter(report: tier3.Tier3) -> None:
    """Another group, other keys, links and moments: so other bytes on the wire, and yet one resolve key."""
    assert len({trial.events for trial in report.orderings}) == 3


def test_every_key_gives_equal_bytes_on_two_nodes(report: tier3.Tier3) -> None:
    """One key of the orders, ten of the partitions, those of the strategies; each resolved once."""
    assert len({resolved.key for resolved in report.resolved}) == len(report.resolved)
    assert {resolved.strategy for resolved in report.resolved} == set(registry.plain_names())
    assert all(resolved.is_equal and resolved.nodes[0] != resolved.nodes[1] for resolved in report.resolved)


def test_partitions_converge_apart_then_to_the_key_of_the_orders(report: tier3.Tier3) -> None:
    assert report.apart is not None
    assert report.together is not None
    assert report.apart.keys == tier3.SITES
    assert report.together.keys == 1
    assert report.together.key == report.orderings[0].key
    assert report.together.agreed_after_s <= 5.0


def test_bytes_of_models_are_sent_about_once_to_each_node(report: tier3.Tier3) -> None:
    assert report.spread is not None
    assert report.spread.is_complete
    assert report.spread.bytes_needed > 20 * 19 * 16 * 16 * 4
    assert report.spread.bytes_sent > report.spread.bytes_needed


def test_large_models_cost_hardly_more_than_their_bytes() -> None:
    """A13: at most 1.1 times what is necessary, headers, requests and refusals included."""
    models = Models(1, 6, side=128)
    with shared_work():
        cluster = Cluster(models, models.policy("linear"), nodes=6, seed=3)
        cluster.contribute(range(6), Random(1), within_s=1.0)
        cluster.world.run(cluster.world.now + 1.0)
        assert cluster.agree() is not None
        found = spread(cluster, models)

    assert found.is_complete
    assert found.bytes_sent <= 1.1 * found.bytes_needed
    assert found.virtual_s >= found.floor_s


def test_models_are_drawn_from_the_seed() -> None:
    assert Models(1, 3, side=4).contents == Models(1, 3, side=4).contents
    assert set(Models(1, 3, side=4).contents).isdisjoint(Models(2, 3, side=4).contents)


def test_the_command_puts_its_figures_beside_those_of_the_paper() -> None:
    words = ["tier3", "--nodes", "4", "--orderings", "2", "--side", "8", "--scale-max", "2"]
    shown = CliRunner().invoke(root, words, catch_exceptions=False)
    told = CliRunner().invoke(root, [*words, "--json"], catch_exceptions=False)
    answer = json.loads(told.stdout)

    assert (shown.exit_code, told.exit_code) == (0, 0)
    assert "492.8 ms" in shown.output
    assert "PASSED" in shown.output
    assert answer["schema"] == "sim-tier3/1"
    assert answer["distinct_keys"] == 1
    assert answer["is_success"] is True
