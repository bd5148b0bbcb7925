"""What those can do who keep within the rules and mean no good (SCENARIOS T24)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.quarantine import weight_problem
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.authors import ONE, Author, contents, make_genesis

SYBILS = 50
MODELS = 20
ELEMENTS = 64
ROBUST = {
    "coordinate_median": lambda _: {},
    "trimmed_mean": lambda liars: {"f": str(liars)},
    "krum": lambda liars: {"f": str(liars)},
    "multi_krum": lambda liars: {"f": str(liars)},
    "geometric_median": lambda _: {},
    "norm_clipped_mean": lambda _: {"rounds": "10"},
}
ATTACKS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "far, together": lambda honest, _: honest.mean(axis=0) + 1e3,
    "far, each elsewhere": lambda honest, i: np.roll(honest[i], i + 1) * 1e3,
    "the other way": lambda honest, _: -10.0 * honest.mean(axis=0),
    "just inside": lambda honest, _: honest.mean(axis=0) - 1.5 * honest.std(axis=0),
}


def honest_models(count: int) -> np.ndarray:
    rng = np.random.default_rng(40)
    return rng.normal(size=ELEMENTS) + 0.1 * rng.normal(size=(count, ELEMENTS))


def reach(honest: np.ndarray) -> float:
    """Return how far the farthest honest model is from their mean."""
    return float(np.linalg.norm(honest - honest.mean(axis=0), axis=1).max())


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("percent", [10, 20, 30])
@pytest.mark.parametrize("strategy", ROBUST)
def test_t24_up_to_thirty_percent_of_liars_move_no_robust_merge_out_of_the_honest(
    strategy: str, percent: int, attack: str
) -> None:
    liars = MODELS * percent // 100
    honest = honest_models(MODELS - liars)
    lies = [ATTACKS[attack](honest, i) for i in range(liars)]
    models = [{"w": values} for values in (*honest, *lies)]
    base = {"w": honest.mean(axis=0) + 0.3} if strategy == "norm_clipped_mean" else None

    merged = merge_arrays(strategy, models, base, ROBUST[strategy](liars)).tensors["w"]

    assert np.linalg.norm(merged - honest.mean(axis=0)) <= reach(honest)


def test_t24_a_tenth_of_liars_moves_a_mean_as_far_as_they_like() -> None:
    """What the test above is worth."""
    honest = honest_models(18)
    models = [{"w": values} for values in (*honest, *[ATTACKS["far, together"](honest, i) for i in range(2)])]

    merged = merge_arrays("weight_average", models).tensors["w"]

    assert np.linalg.norm(merged - honest.mean(axis=0)) > 100 * reach(honest)


def influence(state: CRDTMergeState) -> dict[bytes, int]:
    """Return the weight of every contribution that a resolve would use, once each."""
    return {shown.digest: shown.weight for shown in state.view.visible}


def test_t24_fifty_identities_that_send_one_content_have_the_say_of_one() -> None:
    genesis = make_genesis()
    honest, one = Author(genesis, 0), Author(genesis, 1)
    honest.add("honest")
    one.add("poison")
    one.pull(honest)
    many = one.state.copy()
    for number in range(SYBILS):
        sybil = Author(genesis)
        sybil.key = NodeKey(number.to_bytes(32, "big"))
        sybil.node_id = sybil.key.node_id
        sybil.add("poison")
        many.join(sybil.state)

    assert len(many.view.visible) == len(one.state.view.visible) + SYBILS
    assert influence(many) == influence(one.state)
    assert used_root(influence(many)) == used_root(influence(one.state))


def test_t24_an_author_that_adds_fifty_times_has_one_say_in_its_slot() -> None:
    author = Author(make_genesis())
    for number in range(SYBILS):
        author.add(f"poison {number}")

    assert contents(author.state) == [f"poison {SYBILS - 1}"]


def test_t24_no_author_weighs_more_than_the_cap() -> None:
    cap = 3 * ONE

    assert weight_problem(cap, cap) == ""
    assert "over the group's cap" in weight_problem(cap, cap + 1)
