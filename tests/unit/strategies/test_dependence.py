"""What strategies say of what decides one tensor is true: equal keys, equal bits, whatever else changes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.strategies.coordinates import TrimmedMean
from crdt_merge_protocol.strategies.dare import Dare
from crdt_merge_protocol.strategies.dependence import Dependence, Term, depends, tensor_key
from crdt_merge_protocol.strategies.distances import ByDistance
from crdt_merge_protocol.strategies.findings import findings_of, with_findings
from crdt_merge_protocol.strategies.registry import get, names
from crdt_merge_protocol.strategies.spherical import OnSphere
from crdt_merge_protocol.strategies.ties import SignElection
from support.conformance import EVERY, SHAPES
from support.dependence import changes, elsewhere, is_merged, renamed, world_of

ALONE = {
    "ada_merging": {}, "breadcrumbs_ties": {"profile": "mergekit"}, "dare_ties": {"rescale": "l1"},
    "della": {"rescale": "l1", "scope": "tensor"}, "fisher_merge": {"normalize": "tensor_mean"},
    "geometric_median": {"scope": "tensor"}, "krum": {"scope": "tensor"}, "led_merge": {},
    "multi_krum": {"scope": "tensor"}, "norm_clipped_mean": {"scope": "tensor"},
    "model_breadcrumbs": {"profile": "mergekit"}, "representation_surgery": {},
    "safe_merge": {"combine": "dare_linear"}, "split_unlearn_merge": {"inner": "slerp"},
    "ties": {"scope": "tensor"}, "weight_scope_alignment": {"mode": "posthoc_affine"},
}  # fmt: skip
"""Parameters with which a tensor depends on nothing else, where the defaults will not do or say little."""
NEVER = {
    "emr_merging": "its rescalers are over the whole model, and its masks stand in another file",
    "evolutionary_merge": "the genome of these tests has TIES inside, over the whole model",
    "genetic_merge": "likewise",
    "split_fused": "its state is about parts, whose positions are not those of tensors",
    "svd_knot_tying": "trimming is over all matrices, by positions that their ranks decide",
}
DRAWN = {"dare", "dare_ties", "della", "della_linear", "safe_merge"}
BOUND_TO_THE_SET = {"dam", "adarank"}
"""Which artefact they apply is a fact of theirs, and another set has another one."""
CONTEXTS = [(name, ALONE.get(name, {})) for name in names()] + [
    ("ties", {"scope": "tensor", "profile": "mergekit", "density": "0.5"}),
    ("dare", {"seed_scope": "contribution"}),
    ("della_linear", {"seed_scope": "contribution", "rescale": "l1"}),
    ("linear", {"normalize": "false"}),
    ("weight_scope_alignment", {"granularity": "row", "mode": "posthoc_affine"}),
    ("fisher_merge", {"missing_fisher": "mean_of_others", "normalize": "none"}),
    ("nuslerp", {"flatten": "false"}),
    ("model_stock", {"filter_wise": "true"}),
    ("split_unlearn_merge", {"inner": "dare", "inner.seed_scope": "contribution"}),
    ("safe_merge", {}),
    ("trimmed_mean", {"f": "auto"}),
]
TENSORS = ("a", "b", "d")
"""A matrix, a vector, three dimensions."""


def broken_promises(strategy, params):
    """Return what changed a tensor's bits and not its key."""
    rng = np.random.default_rng(5)
    world, found = world_of(strategy, params), []
    for tensor in TENSORS:
        key = world.key(tensor)
        if key is None:
            continue
        variants = [
            ("other tensors", elsewhere(world, tensor, rng)),
            ("other names", renamed(elsewhere(world, tensor, rng))),
            *changes(world, tensor, rng),
        ]
        found += [
            (tensor, what)
            for what, variant in variants
            if is_merged(variant)
            and variant.key(tensor) == key
            and variant.tensors[tensor] != world.tensors[tensor]
        ]
    return found


@pytest.mark.parametrize(("strategy", "params"), CONTEXTS)
def test_equal_keys_mean_equal_bits(strategy, params):
    assert broken_promises(strategy, params) == []


@EVERY
def test_every_strategy_says_under_which_parameters_a_tensor_depends_on_itself_alone(name):
    """Otherwise the law above could be kept by saying nothing."""
    world = world_of(name, ALONE.get(name))

    assert {world.key(tensor) is None for tensor in SHAPES} == {name in NEVER}


@pytest.mark.parametrize("name", [name for name in names() if name not in NEVER])
def test_a_key_stays_when_other_tensors_change_and_goes_when_its_own_does(name):
    rng = np.random.default_rng(6)
    world = world_of(name, ALONE.get(name))
    for tensor in TENSORS:
        key, around = world.key(tensor), elsewhere(world, tensor, rng)
        changed = {**world.models[0], tensor: world.models[0][tensor] + np.float32(1)}
        of_one = world_of(name, ALONE.get(name))
        of_one.models[0] = changed

        assert around.key(tensor) == key
        assert (renamed(around).key(tensor) == key) is (name not in DRAWN | BOUND_TO_THE_SET)
        assert of_one.key(tensor) != key


@pytest.mark.parametrize("name", [name for name in names() if name not in NEVER])
def test_parameters_of_other_tensors_do_not_show(name):
    world = world_of(name, ALONE.get(name))
    for what, variant in changes(world, "a", np.random.default_rng(8)):
        if what.endswith("elsewhere") and is_merged(variant):
            assert variant.key("a") == world.key("a"), what


@pytest.mark.parametrize(("strategy", "params"), CONTEXTS)
def test_what_passes_found_of_a_tensor_can_be_kept_and_put_into_the_state_of_others(strategy, params):
    """An account tells of tensors that no pass has seen this time as if it had."""
    world = world_of(strategy, params)
    kept = [index for index, spec in enumerate(world.context.specs) if world.key(spec.name) is not None]
    whole, partly = world.state(), world.state(hidden=kept)
    for index in kept:
        found = json.loads(json.dumps(findings_of(whole, index), allow_nan=False))
        partly = with_findings(partly, index, found)

    expected, actual = (get(strategy).decisions(world.context, state) for state in (whole, partly))
    assert json.dumps(actual) == json.dumps(expected)


def test_masks_of_contributions_stay_with_them_and_masks_of_the_set_go_with_it():
    own, of_all = (world_of("dare", {"seed_scope": scope}) for scope in ("contribution", "root"))
    whole = world_of("dare", {"density": "b=0.5;1"})

    for world, is_kept in ((own, True), (of_all, False)):
        again = world_of("dare", world.params)
        object.__setattr__(again, "seed", b"another")
        assert (again.key("a") == world.key("a")) is is_kept
    assert renamed(own).key("a") != own.key("a")
    assert renamed(whole).key("a") == whole.key("a"), "nothing is drawn there"
    assert renamed(whole).key("b") != whole.key("b")


def test_a_contribution_that_is_not_read_does_not_show():
    rng = np.random.default_rng(7)
    table = "a#0101010101010101=1;a=0;1"
    world, copied = world_of("weight_average", {"weight": table}), world_of("passthrough")
    for one in (world, copied):
        more = dict(changes(one, "a", rng))["one more, the last"]
        assert more.key("a") == one.key("a")
        assert more.tensors["a"] == one.tensors["a"]
    assert dict(changes(world, "b", rng))["one more, the last"].key("b") != world.key("b")


def test_the_order_of_two_does_not_show_in_a_sum_and_that_of_three_does():
    world = world_of("weight_average")
    for count in (2, 3):
        few = type(world)("weight_average", world.models[:count], world.base)
        turned = type(world)("weight_average", world.models[:count][::-1], world.base)

        assert (few.key("a") == turned.key("a")) is (count == 2)
        assert count == 3 or few.tensors == turned.tensors


WRONG = {
    "model-wide thresholds": (SignElection, "ties", {}, depends),
    "masks of the whole set": (Dare, "dare", {}, depends),
    "judged as a whole": (ByDistance, "geometric_median", {}, depends),
    "any order": (OnSphere, "slerp", {}, lambda s, c, i: depends(s, c, i, is_ordered=False)),
    "a parameter left out": (
        TrimmedMean, "trimmed_mean", {"f": "1"},
        lambda s, c, i: depends(s, c, i, is_ordered=False, ignored=("f",)),
    ),
    "a contribution left out": (OnSphere, "karcher", {}, lambda s, c, i: depends(s, c, i, reads=[0, 1])),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_false_promise_is_found(monkeypatch, what):
    """That the law can fail: strategies that say less than what decides a tensor."""
    owner, strategy, params, said = WRONG[what]
    assert broken_promises(strategy, params) == []
    monkeypatch.setattr(owner, "dependence", said)

    assert broken_promises(strategy, params)


def test_versions_and_names_of_strategies_are_in_the_key(monkeypatch):
    world = world_of("slerp")
    key = world.key("a")
    monkeypatch.setattr(type(get("slerp")), "version", 2)

    assert world.key("a") != key
    assert world_of("weight_average").key("a") != world_of("linear").key("a")


def test_all_that_a_key_is_made_of_makes_another():
    """The same bytes are other numbers in another type, which their digest does not tell."""
    found, spec = Dependence("sum", (Term(0, "1"),)), TensorSpec(name="a", dtype="F32", shape=(2, 3))
    source, other = bytes([1]) * 32, bytes([2]) * 32
    keys = [
        tensor_key(found, spec, "F16", [source], "rules"),
        tensor_key(found, spec, "BF16", [source], "rules"),
        tensor_key(found, spec, "F16", [other], "rules"),
        tensor_key(found, spec, "F16", [source], "others"),
        tensor_key(replace(found, common="product"), spec, "F16", [source], "rules"),
        tensor_key(replace(found, terms=(Term(0, "2"),)), spec, "F16", [source], "rules"),
        tensor_key(found, replace(spec, name="b"), "F16", [source], "rules"),
        tensor_key(found, replace(spec, dtype="F16"), "F16", [source], "rules"),
        tensor_key(found, replace(spec, shape=(3, 2)), "F16", [source], "rules"),
    ]

    assert len(set(keys)) == len(keys)
