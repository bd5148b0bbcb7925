"""From a policy and contributions to a job and its steps (PROTOCOL R9, R14, R17; STRATEGIES 1.3, 1.12)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_node.resolve.job import TensorSource, UsedModel
from crdt_merge_node.resolve.memory import share_memory
from crdt_merge_node.resolve.plan import build_job, make_plan
from crdt_merge_node.resolve.steps import SLOT_BYTES, sources_of
from crdt_merge_protocol.blobs import (
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
    blob_digest_of,
    contribution_digest,
)
from crdt_merge_protocol.errors import (
    BaseMissingError,
    EmptySetError,
    IntegerTensorDiffersError,
    MissingBlobError,
    ParameterError,
    ResolveError,
    ShapeMismatchError,
)
from crdt_merge_protocol.limits import CHUNK_BYTES, MIB, WEIGHT_ONE
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.resolve_key import seed_of
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS

SCHEMA = Schema.of(
    [TensorSpec(name="w", dtype="F32", shape=(3,)), TensorSpec(name="ids", dtype="I64", shape=(2,))]
)
POLICY = Policy(strategy="weight_average", schema=SCHEMA.id)


def model(
    *, w: tuple[float, ...] = (1, 2, 3), ids: tuple[int, ...] = (1, 2), weight: int = WEIGHT_ONE
) -> UsedModel:
    data = {"w": np.array(w, "<f4").tobytes(), "ids": np.array(ids, "<i8").tobytes()}
    manifest = Manifest.of(
        ManifestEntry(spec=spec, blob=blob_digest_of(data[spec.name])) for spec in SCHEMA.specs
    )
    sources = {name: TensorSource(None, 0, len(raw), raw) for name, raw in data.items()}
    name = contribution_digest(kind="model", content=manifest.content, weight=weight)
    return UsedModel(name, weight, manifest, sources)


MODELS = [model(w=(i, i, i)) for i in range(3)]


def job(models=MODELS, base=None, *, policy=POLICY, group_mode=True, **options):
    return build_job(policy, SCHEMA, models, base, group_mode=group_mode, **options)


def test_the_order_of_contributions_does_not_matter():
    assert len({repr(job(list(order))) for order in itertools.permutations(MODELS)}) == 1


def test_equal_digests_count_once_whoever_sent_them():
    """R9."""
    twice = job([*MODELS, model(w=(0, 0, 0))])

    assert twice == job(MODELS)
    assert len(twice.inputs) == 3


def test_equal_tensors_with_different_weights_are_two_votes():
    both = job([model(), model(weight=2 * WEIGHT_ONE)])

    assert sorted(item.weight for item in both.inputs) == [WEIGHT_ONE, 2 * WEIGHT_ONE]


def test_the_seed_is_over_the_contributions_alone():
    """R17."""
    digests = [item.digest for item in MODELS]

    assert job().seed == seed_of(digests)
    assert job(policy=replace(POLICY, strategy="linear")).seed == job().seed
    assert job(MODELS[:2]).seed != job().seed


@pytest.mark.parametrize(
    "changed",
    [
        {"strategy": "linear"},
        {"strategy": "linear", "params": (("normalize", "false"),)},
        {"dtype": "F16"},
        {"weight_cap": 7},
        {"holders": 2},
    ],
)
def test_another_recipe_has_another_key(changed):
    """S7."""
    assert job(policy=replace(POLICY, **changed)).resolve_key != job().resolve_key


def test_the_policy_version_is_no_part_of_the_key():
    assert job(policy=replace(POLICY, version=9)).resolve_key == job().resolve_key


def test_without_one_contribution_the_key_is_another():
    assert job(MODELS[:2]).resolve_key != job().resolve_key


def test_no_contributions_are_an_error():
    """B60, STRATEGIES 1.12: only k = 0 is."""
    with pytest.raises(EmptySetError):
        job([])


def test_one_contribution_is_enough():
    assert make_plan(job(MODELS[:1]), cores=1).context.k == 1


def test_missing_bytes_are_named():
    """T48: never silently partial."""
    lacking = MODELS[1]._replace(sources={"ids": MODELS[1].sources["ids"]})
    blob = {entry.spec.name: entry.blob for entry in lacking.manifest.entries}["w"]

    with pytest.raises(MissingBlobError, match=rf"1 blobs .*{blob.hex()[:12]} \(w of contribution"):
        job([MODELS[0], lacking])


def test_many_missing_bytes_are_counted():
    lacking = [item._replace(sources={}) for item in (*MODELS, *(model(w=(i, 0, 0)) for i in range(5, 9)))]

    with pytest.raises(MissingBlobError, match=r"14 blobs .* and 6 more"):
        job(lacking)


def test_a_base_that_the_policy_names_must_be_given():
    named = replace(POLICY, base=MODELS[0].manifest.content)
    with pytest.raises(BaseMissingError):
        job(policy=named)
    with pytest.raises(BaseMissingError):
        job(policy=named, base=MODELS[1])

    assert job(policy=named, base=MODELS[0]).base is not None


def test_a_strategy_that_needs_a_base_says_so():
    with pytest.raises(BaseMissingError):
        make_plan(job(policy=replace(POLICY, strategy="ties")), cores=1)


def test_the_blobs_of_an_unused_base_need_not_be_here():
    absent = MODELS[0]._replace(sources={"ids": MODELS[0].sources["ids"]})
    named = replace(POLICY, base=absent.manifest.content)

    assert make_plan(job(policy=named, base=absent), cores=1).tensors[1].base is None
    with pytest.raises(MissingBlobError):
        job(policy=replace(named, strategy="ties"), base=absent)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategy": "weight_averag"}, "weight_averag"),
        ({"strategy_version": 99}, "version 99"),
        ({"params": (("lambada", "1"),)}, "lambada"),
        ({"seed_rule": "dice"}, "dice"),
        ({"schema": bytes(32)}, "schema"),
    ],
)
def test_a_policy_of_another_release_is_refused_by_name(changed, message):
    with pytest.raises(ParameterError, match=message):
        job(policy=replace(POLICY, **changed))


def test_a_model_of_another_schema_is_refused():
    other = Manifest.of([ManifestEntry(spec=TensorSpec(name="w", dtype="F32", shape=(4,)), blob=bytes(32))])
    with pytest.raises(ResolveError, match="does not fit the schema"):
        job([MODELS[0]._replace(manifest=other)])
    reshaped = Manifest.of(
        ManifestEntry(spec=replace(spec, shape=(spec.numel, 1)), blob=bytes(32)) for spec in SCHEMA.specs
    )
    with pytest.raises(ShapeMismatchError):
        job([MODELS[0]._replace(manifest=reshaped)])


def kept(models, base=None, *, group_mode=True):
    policy = replace(POLICY, base=base.manifest.content) if base else POLICY
    plan = make_plan(job(models, base, policy=policy, group_mode=group_mode), cores=1)
    source = plan.tensors[0].inputs[0]
    return tuple(np.frombuffer(source.data, "<i8").tolist()), plan.warnings


def test_equal_integer_tensors_are_copied_without_a_word():
    assert kept([model(w=(1, 1, 1)), model(w=(2, 2, 2))]) == ((1, 2), ())


def test_differing_integer_tensors_are_refused_offline():
    with pytest.raises(IntegerTensorDiffersError, match="ids"):
        kept([model(ids=(1, 2)), model(ids=(1, 3))], group_mode=False)


def test_a_base_with_other_integers_is_refused_offline():
    with pytest.raises(IntegerTensorDiffersError, match="ids"):
        kept([model(ids=(1, 2))], model(ids=(1, 3)), group_mode=False)


def test_in_a_group_the_base_decides_about_integers():
    values, warnings = kept([model(ids=(1, 2)), model(ids=(1, 3))], model(ids=(9, 9)))

    assert values == (9, 9)
    assert "base's" in warnings[0]


def test_in_a_group_without_base_the_most_frequent_integers_win():
    values, warnings = kept([model(w=(i, i, i), ids=(7, 7)) for i in range(2)] + [model(ids=(1, 3))])

    assert values == (7, 7)
    assert "most frequent" in warnings[0]


def test_of_equally_frequent_integers_the_smallest_digest_wins():
    models = [model(ids=(i, i)) for i in range(6)]
    smallest = min(models, key=lambda item: item.digest)
    expected = tuple(np.frombuffer(smallest.sources["ids"].data, "<i8").tolist())

    for order in (models, models[::-1]):
        assert kept(order)[0] == expected


def test_the_output_type_is_that_of_the_policy_for_float_tensors_only():
    plan = make_plan(job(policy=replace(POLICY, dtype="BF16")), cores=1)

    assert [tensor.spec.dtype for tensor in plan.tensors] == ["I64", "BF16"]
    assert plan.nbytes == len(plan.header) + 16 + 6


def test_weights_reach_the_strategy_exactly():
    plan = make_plan(job([model(weight=1), model(weight=(1 << 63) - 1)]), cores=1)

    assert set(plan.context.weights) == {Fraction(1, 1 << 32), Fraction((1 << 63) - 1, 1 << 32)}


def test_strictness_is_for_merge_alone():
    assert make_plan(job(group_mode=False), cores=1).context.is_strict
    assert not make_plan(job(group_mode=True), cores=1).context.is_strict


def large_plan(dtype: str, numel: int):
    schema = Schema.of(
        [
            TensorSpec(name="a", dtype=dtype, shape=(numel,)),
            TensorSpec(name="b", dtype="U8", shape=(2 * SLOT_BYTES + 5,)),
            TensorSpec(name="c", dtype=dtype, shape=(0, 4)),
            *(TensorSpec(name=f"d{i}", dtype=dtype, shape=(7,)) for i in range(50)),
        ]
    )
    manifest = Manifest.of(ManifestEntry(spec=spec, blob=bytes(32)) for spec in schema.specs)
    sources = {spec.name: TensorSource("/nowhere", 0, spec.nbytes) for spec in schema.specs}
    used = UsedModel(bytes(32), WEIGHT_ONE, manifest, sources)
    return make_plan(
        build_job(replace(POLICY, schema=schema.id), schema, [used], None, group_mode=True), cores=2
    )


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_batches_cover_the_output_in_order_and_fit_a_slot(dtype: str):
    plan = large_plan(dtype, 1_500_001)
    covered = dict.fromkeys(range(len(plan.tensors)), 0)
    last = -1
    for batch in plan.merge_batches():
        assert sum(map(plan.output_bytes, batch)) <= SLOT_BYTES
        for span in batch:
            assert span.tensor >= last
            assert span.start == covered[span.tensor]
            assert span.start * (plan.output_bytes(span) // (span.stop - span.start)) % CHUNK_BYTES == 0
            covered[span.tensor] = span.stop
            last = span.tensor

    assert [covered[number] for number in covered] == [
        tensor.spec.numel if tensor.index >= 0 else tensor.spec.nbytes for tensor in plan.tensors
    ]


def test_a_pass_sees_only_what_it_wants():
    plan = large_plan("F32", 1_500_001)
    wanted = [index == 0 for index in range(len(plan.context.specs))]
    spans = [span for batch in plan.observe_batches(wanted, lambda _index, span: [span]) for span in batch]

    assert {span.tensor for span in spans} == {0}
    assert sum(span.stop - span.start for span in spans) == 1_500_001


def test_small_inputs_are_merged_in_this_process_and_large_ones_by_all_cores():
    assert make_plan(job(), cores=2).workers == 0
    assert make_plan(job(workers=3), cores=2).workers == 3
    large = large_plan("F32", 20_000_000)
    assert large.workers == 2
    assert large.input_bytes == sum(source.nbytes for t in large.tensors for source in sources_of(t))


def test_compiled_loops_are_done_without_where_they_would_cost_a_worker():
    ample = share_memory(512 * MIB, k=2, wanted=2, compiled_bytes=100 * MIB)
    scarce = share_memory(256 * MIB, k=2, wanted=2, compiled_bytes=100 * MIB)

    assert (ample.workers, ample.is_compiled) == (2, True)
    assert (scarce.workers, scarce.is_compiled) == (2, False)
    assert 200 * MIB < ample.memory_bytes - scarce.memory_bytes <= 300 * MIB
    assert not share_memory(512 * MIB, k=2, wanted=0, compiled_bytes=100 * MIB).is_compiled


@pytest.mark.parametrize(
    ("budget_mib", "k"), [(128, 1), (128, 4), (512, 1), (512, 60), (512, 200), (4096, 60)]
)
def test_the_memory_budget_is_kept_by_smaller_blocks_then_fewer_workers(budget_mib: int, k: int):
    workers, block, *_ = share_memory(budget_mib * MIB, k=k, wanted=16)

    assert 1 <= workers <= 16
    assert block % LEAF_ELEMENTS == 0
    assert workers * (block * 8 * (2 * k + 8) + 2 * SLOT_BYTES) <= budget_mib * MIB


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(ResolveError, match=r"need .* MiB of memory at least, 64 MiB are allowed"):
        share_memory(64 * MIB, k=1000, wanted=2)
