"""Forty engines with partial views: no islands, all operations everywhere, little redundancy (PROTOCOL 3)."""

import pytest
from crdt_merge_protocol.limits import ACTIVE_MAX, FULL_MESH_NODES_MAX
from support.authors import make_genesis
from support.overlays import Crowd

COUNT = 40


def crowd_of(count: int, *, seed: int = 1, settle_s: float = 30.0) -> Crowd:
    """Return nodes that started within a second and know of node 0 only, and share a group."""
    crowd = Crowd(count, seed=seed)
    crowd.start(0)
    for index in range(1, count):
        crowd.at(crowd.rng.random(), lambda index=index: crowd.start(index, 0))
    crowd.run(1.5)
    crowd.found(make_genesis())
    assert crowd.run(30.0, stop=lambda: crowd.is_converged)
    crowd.run(settle_s)
    return crowd


def test_a_small_cluster_stays_a_full_mesh() -> None:
    crowd = crowd_of(FULL_MESH_NODES_MAX, settle_s=5.0)

    assert all(node.engine.overlay.is_mesh for node in crowd.nodes)
    assert all(len(node.neighbours) == FULL_MESH_NODES_MAX - 1 for node in crowd.nodes)
    assert not crowd.disconnects


def test_one_node_more_makes_partial_views_without_cutting_the_cluster() -> None:
    crowd = crowd_of(FULL_MESH_NODES_MAX, settle_s=5.0)
    crowd.nodes += (extra := Crowd(FULL_MESH_NODES_MAX + 1).nodes[-1:])
    for node in extra:
        crowd._by_id[node.key.node_id] = crowd._by_address[node.address] = node
        crowd.start(node.index, 0)
    crowd.run(30.0)

    assert not any(node.engine.overlay.is_mesh for node in crowd.nodes)
    assert crowd.parts() == [FULL_MESH_NODES_MAX + 1]
    assert max(len(node.neighbours) for node in crowd.nodes) <= ACTIVE_MAX


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_simultaneous_joiners_end_in_one_part_with_bounded_views(seed: int) -> None:
    crowd = crowd_of(COUNT, seed=seed)

    assert crowd.parts() == [COUNT]
    assert all(3 <= len(node.neighbours) <= ACTIVE_MAX for node in crowd.nodes)
    connections = [len(node.peers) for node in crowd.nodes]
    assert max(connections) <= 2 * ACTIVE_MAX  # Those that did not become links were closed again.


def test_operations_reach_everybody_along_a_tree() -> None:
    """TARGETS A3: hardly a payload is sent twice once the tree has formed."""
    crowd = crowd_of(COUNT)
    for number in range(5):
        crowd.add(3, number)
        crowd.run(1.0)
    sent = [crowd.add(3 + number, 100 + number) for number in range(10) if not crowd.run(1.0)]
    crowd.run(1.0)

    assert [crowd.holders(one.id) for one in sent] == [COUNT] * 10
    pushes = sum(crowd.pushes[one.id] for one in sent)
    assert pushes < 1.5 * 10 * (COUNT - 1)


def test_lost_payloads_are_fetched_from_who_announced_them() -> None:
    """TARGETS A5: 5 % of the pushes vanish, and everything is everywhere within a second and a half."""
    crowd = crowd_of(COUNT)
    crowd.lost_ratio = 0.05
    sent = []
    for number in range(10):
        sent.append(crowd.add(number, number))
        crowd.run(1.5)

    assert [crowd.holders(one.id) for one in sent] == [COUNT] * 10


def test_the_survivors_of_a_mass_crash_find_each_other() -> None:
    """TARGETS A6: four of five nodes die at once."""
    crowd = crowd_of(COUNT)
    for index in crowd.rng.sample(range(COUNT), COUNT * 4 // 5):
        crowd.kill(index)
    crowd.run(8.0)
    signed = crowd.add(crowd.living()[0].index, 1)
    crowd.run(2.0)

    assert crowd.parts() == [COUNT // 5]
    assert crowd.holders(signed.id) == COUNT // 5


def test_a_healed_partition_grows_together_and_agrees() -> None:
    """TARGETS A14: four sides that worked apart for half a minute."""
    crowd = crowd_of(COUNT)
    crowd.split({index: index % 4 for index in range(COUNT)})
    crowd.run(10.0)
    for index in range(0, COUNT, 5):
        crowd.add(index, index)
    crowd.run(20.0)
    assert crowd.parts() == [COUNT // 4] * 4

    crowd.split({})

    assert crowd.run(15.0, stop=lambda: crowd.is_converged and crowd.parts() == [COUNT])


def test_idle_traffic_does_not_grow_with_the_cluster() -> None:
    """TARGETS A8: per node and second, with three times the nodes."""
    rates = []
    for count in (16, 48):
        crowd = crowd_of(count)
        before = crowd.sent_bytes
        crowd.run(60.0)
        rates.append((crowd.sent_bytes - before) / 60 / count)

    assert max(rates) < 500
    assert rates[1] < 1.25 * rates[0]
