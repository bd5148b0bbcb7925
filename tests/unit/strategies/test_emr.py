"""EMR-Merging: the elected difference, masks and rescalers, and the models of the tasks."""

import numpy as np
import pytest
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS, Block
from crdt_merge_protocol.strategies.reference import merge_arrays
from support import vectors

RNG = np.random.default_rng(37)
SHAPES = {"m": (5, 7), "s": (), "v": (9,), "void": (0, 3)}
BASE = {name: RNG.integers(-64, 64, shape) / 16 for name, shape in SHAPES.items()}
MODELS = [{name: x + RNG.integers(-3, 4, x.shape) / 16 for name, x in BASE.items()} for _ in range(4)]
DIGESTS = [bytes([i]) * 32 for i in range(1, 5)]


def emr(models=MODELS, base=BASE, params=None, **options):
    options.setdefault("digests", DIGESTS[: len(models)])
    return merge_arrays("emr_merging", models, base, params, **options)


class Recorder:
    """Runs a merge and keeps the masks of every task as well."""

    def __init__(self, monkeypatch, models, base, digests=DIGESTS, **options):
        strategy = registry.get("emr_merging")
        self.masks = {}
        plain = type(strategy).merge

        def merge(this, context, state, block):
            name = context.specs[block.tensor_index].name
            for i in range(context.k):
                bits = this.modulate(context, state, block, i)
                mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=block.stop - block.start)
                self.masks.setdefault((name, i), []).append(mask)
            return plain(this, context, state, block)

        with monkeypatch.context() as patch:
            patch.setattr(type(strategy), "merge", merge)
            self.result = emr(models, base, digests=digests[: len(models)], **options)

    def mask(self, name, i):
        return np.concatenate(self.masks[name, i])


def test_everything_matches_the_golden_vectors(monkeypatch):
    models, base = list(vectors.MODELS), {"t": vectors.BASE}

    run = Recorder(monkeypatch, models, base, vectors.DIGESTS)

    golden = vectors.DATA["emr"]
    assert (run.result.tensors["t"] - vectors.BASE).tolist() == golden["common"]
    assert ["".join(map(str, run.mask("t", i))) for i in range(3)] == golden["masks"]
    gammas = [run.result.decisions["gamma"][digest.hex()] for digest in vectors.DIGESTS]
    np.testing.assert_allclose(gammas, golden["rescalers"], rtol=1e-9)


def oracle(models, base, scope, voters):
    """Return unified differences, masks and rescalers, one element at a time."""
    unified, masks = {}, [{} for _ in models]
    above, below = [0.0] * len(models), [0.0] * len(models)
    for name, start in base.items():
        unified[name] = np.zeros(start.shape)
        for mask in masks:
            mask[name] = np.zeros(start.shape, int)
        divisor = start.size if scope == "tensor_means" else 1
        for place in np.ndindex(start.shape):
            column = [float(model[name][place] - start[place]) for model in models]
            direction = 1 if sum(column[i] for i in voters) > 0 else -1
            best = max((column[i] * direction for i in voters), default=0.0)
            unified[name][place] = direction * max(best, 0.0)
            for i, x in enumerate(column):
                masks[i][name][place] = x * unified[name][place] > 0
                above[i] += abs(x) / divisor
                below[i] += masks[i][name][place] * abs(unified[name][place]) / divisor
    return unified, masks, [a / b if b else 0.0 for a, b in zip(above, below, strict=True)]


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("scope", ["elements", "tensor_means"])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 0, 2, 0)])
def test_the_common_model_and_the_tasks_equal_loops_over_elements(monkeypatch, weights, scope, k):
    models, options = MODELS[:k], {"params": {"rescale_scope": scope}, "weights": weights[:k]}
    unified, masks, gammas = oracle(models, BASE, scope, [i for i in range(k) if weights[i]])

    run = Recorder(monkeypatch, models, BASE, **options)
    tasks = [emr(models, task=DIGESTS[i], **options).tensors for i in range(k)]

    np.testing.assert_allclose(list(run.result.decisions["gamma"].values()), gammas, rtol=1e-13)
    for name, base in BASE.items():
        np.testing.assert_allclose(run.result.tensors[name], base + unified[name], rtol=1e-14)
        for i in range(k):
            expected = base + gammas[i] * masks[i][name] * unified[name]
            np.testing.assert_allclose(tasks[i][name], expected, rtol=1e-13)
            if base.size:
                assert run.mask(name, i).tolist() == masks[i][name].reshape(-1).tolist()


def test_one_model_is_itself():
    for options in ({}, {"task": DIGESTS[0]}):
        out = emr(MODELS[:1], **options)
        for name in BASE:
            assert out.tensors[name].tolist() == MODELS[0][name].tolist()
        assert out.decisions["gamma"] == {DIGESTS[0].hex(): 1.0}


def test_a_task_that_changes_nothing_and_one_that_is_out_voted_get_the_base():
    base = {"t": np.zeros(6)}
    models = [{"t": np.full(6, 5.0)}, {"t": np.zeros(6)}, {"t": np.full(6, -1.0)}]

    gammas = emr(models, base).decisions["gamma"]
    tasks = [emr(models, base, task=DIGESTS[i]).tensors["t"].tolist() for i in range(3)]

    assert gammas == {DIGESTS[0].hex(): 1.0, DIGESTS[1].hex(): 0.0, DIGESTS[2].hex(): 0.0}
    assert tasks == [[5.0] * 6, [0.0] * 6, [0.0] * 6]


def test_models_equal_to_the_base_give_the_base():
    for options in ({}, {"task": DIGESTS[1]}):
        out = emr([BASE, BASE], **options).tensors
        for name, base in BASE.items():
            assert out[name].tolist() == base.tolist()


def test_rescaling_restores_the_sum_of_magnitudes_of_each_task():
    for i, model in enumerate(MODELS):
        out = emr(task=DIGESTS[i]).tensors
        own, restored = (
            sum(float(np.abs(x[name] - base).sum()) for name, base in BASE.items()) for x in (model, out)
        )
        assert restored == pytest.approx(own, rel=1e-12)


@pytest.mark.parametrize("task", [None, 1])
def test_blocks_and_the_order_of_inputs_do_not_show(task):
    base = {"t": RNG.normal(size=2 * LEAF_ELEMENTS + 77), "u": RNG.normal(size=300)}
    models = [{name: x + RNG.normal(size=x.shape) for name, x in base.items()} for _ in range(3)]
    options = {} if task is None else {"task": DIGESTS[task]}

    whole = emr(models, base, **options)
    small = emr(models[::-1], base, digests=DIGESTS[2::-1], block_elements=LEAF_ELEMENTS, **options)

    assert whole.decisions == small.decisions
    for name in base:
        assert whole.tensors[name].tobytes() == small.tensors[name].tobytes()


def test_twice_the_differences_give_twice_the_change_and_the_same_rescalers():
    doubled = [{name: b + 2 * (model[name] - b) for name, b in BASE.items()} for model in MODELS]

    once, twice = emr(), emr(doubled)

    assert once.decisions["gamma"] == twice.decisions["gamma"]
    for name, b in BASE.items():
        np.testing.assert_allclose(twice.tensors[name] - b, 2 * (once.tensors[name] - b), rtol=1e-13)


def test_unequal_weights_are_warned_of():
    assert emr().decisions["warnings"] == []
    assert "no weights" in emr(weights=(1, 2, 1, 1)).decisions["warnings"][0]


def test_masks_of_blocks_that_are_no_multiple_of_eight_are_padded():
    strategy = registry.get("emr_merging")
    block = Block(tensor_index=0, start=0, stop=10, inputs=[np.ones(10)], base=np.zeros(10))

    class Context:
        weights = (1,)

    assert strategy.modulate(Context(), None, block, 0) == bytes([0xFF, 0xC0])
