"""What every strategy that works with artefacts of these formats has in common (STRATEGIES A.5)."""

import functools
import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_protocol.blobs import Schema
from crdt_merge_protocol.errors import ArtefactMissingError
from crdt_merge_protocol.strategies.artefact_checks import check_artefact, check_values
from crdt_merge_protocol.strategies.composite import effective
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS, MergeContext
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get
from support.artefacts import some_artefacts, specs_of

CASES = [
    ("fisher_merge", {}),
    ("fisher_merge", {"normalize": "tensor_mean", "fisher_power": "0.5"}),
    ("led_merge", {}),
    ("led_merge", {"scope": "model"}),
    ("ada_merging", {}),
    ("ada_merging", {"plusplus": "true"}),
    ("dam", {}),
    ("evolutionary_merge", {}),
    ("genetic_merge", {}),
    ("representation_surgery", {}),
]
SHAPES = {"empty": (0, 4), "layer.b": (33,), "layer.w": (230, 301), "scalar": (), "single": (1, 1)}
DIGESTS = tuple(bytes([i]) * 32 for i in (1, 2, 3))

every = pytest.mark.parametrize(("strategy", "params"), CASES, ids=str)


def draw(seed):
    """Return multiples of 1/256 in -2..2, from raw words: generators' methods may change."""
    words = np.random.Philox(key=seed)
    return {
        name: (((words.random_raw(math.prod(shape)) >> 54).astype(np.float64) - 512) / 256).reshape(shape)
        for name, shape in SHAPES.items()
    }


BASE, MODELS = draw(0), [draw(i) for i in (1, 2, 3)]


def merged(strategy, params, models=MODELS, digests=DIGESTS, *, base=BASE, **options):
    artefacts = options.pop("artefacts", None)
    if artefacts is None:
        artefacts = some_artefacts(get(strategy), models, digests)
    return merge_arrays(
        strategy, models, base, params, digests=digests, artefacts=artefacts, seed=b"s", **options
    )


@functools.cache
def expected(number):
    return merged(*CASES[number])


def same(first, second):
    assert first.decisions == second.decisions
    assert all(first.tensors[name].tobytes() == second.tensors[name].tobytes() for name in SHAPES)


def number_of(strategy, params):
    return CASES.index((strategy, params))


@every
def test_the_artefacts_are_of_their_format(strategy, params):
    for item in some_artefacts(get(strategy), MODELS, DIGESTS):
        schema = Schema.of(specs_of(BASE))
        assert check_artefact(item.artefact.type, item.artefact.header, item.artefact.specs, schema) == []
        for name, values in item.tensors.items():
            assert check_values(item.artefact.type, name, values.reshape(-1)) is None


@every
def test_order_and_duplicates_do_not_show(strategy, params):
    artefacts = some_artefacts(get(strategy), MODELS, DIGESTS)

    turned = merged(
        strategy, params, [*MODELS[::-1], MODELS[1]], [*DIGESTS[::-1], DIGESTS[1]], artefacts=artefacts[::-1]
    )

    same(turned, expected(number_of(strategy, params)))


@every
def test_blocks_passes_and_compaction_do_not_show(strategy, params, monkeypatch):
    kind = type(get(strategy))
    end_pass = kind.end_pass

    def compact_first(self, context, state, pass_no, partials):
        some = self.compact(context, pass_no, list(partials[1:]))
        ordered = sorted([*partials[:1], *some], key=lambda item: item[0])
        return end_pass(self, context, state, pass_no, ordered)

    monkeypatch.setattr(kind, "end_pass", compact_first)
    monkeypatch.setattr(kind, "needs", lambda *_: True)

    same(merged(strategy, params, block_elements=LEAF_ELEMENTS), expected(number_of(strategy, params)))


@every
def test_no_blas_and_no_random_generator_is_called(strategy, params, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("not the same on every machine")

    wanted = expected(number_of(strategy, params))
    for name in ("dot", "matmul", "einsum", "inner", "tensordot", "vdot", "exp", "log", "sum", "mean"):
        monkeypatch.setattr(np, name, refuse)
    for name in ("norm", "svd", "solve", "qr"):
        monkeypatch.setattr(np.linalg, name, refuse)

    same(merged(strategy, params, block_elements=LEAF_ELEMENTS), wanted)


@every
def test_one_model_is_merged_too(strategy, params):
    out = merged(strategy, params, MODELS[:1], DIGESTS[:1])

    assert all(np.isfinite(out.tensors[name]).all() for name in SHAPES)


@pytest.mark.parametrize(("strategy", "params"), [c for c in CASES if c[0] not in ("dam", "fisher_merge")])
def test_models_that_are_the_base_give_the_base(strategy, params):
    out = merged(strategy, params, [BASE] * 3)

    assert all((out.tensors[name] == BASE[name]).all() for name in SHAPES)


@pytest.mark.parametrize("params", [params for strategy, params in CASES if strategy == "fisher_merge"])
def test_equal_models_stay_what_they_are_under_fisher_weights(params):
    out = merged("fisher_merge", params, [MODELS[0]] * 3)

    for name in SHAPES:
        np.testing.assert_allclose(out.tensors[name], MODELS[0][name], rtol=1e-14)


@every
def test_without_artefacts_it_refuses_and_a_stand_in_is_used_only_if_named(strategy, params):
    with pytest.raises(ArtefactMissingError):
        merged(strategy, params, artefacts=[])
    chosen = get(strategy)
    for fallback, unmet in (("none", True), ("weight_average", False)):
        context = MergeContext(
            strategy=strategy,
            params=chosen.validate({**params, "fallback": fallback}),
            weights=(1, 1),
            digests=DIGESTS[:2],
            has_base=True,
            seed=b"",
            specs=specs_of(BASE),
        )
        working = effective(chosen, context)
        assert (working.unmet is not None) == unmet
        assert working.strategy.id == (strategy if unmet else "weight_average")


@every
def test_names_say_that_data_is_needed(strategy, params):
    assert "without" in get(strategy).doc.lower()
    assert get(strategy).formula
    assert get(strategy).artefacts


@functools.cache
def outputs_digest():
    """Return SHA-256 over the outputs of all cases, as float64."""
    state = hashlib.sha256()
    for number in range(len(CASES)):
        for name in SHAPES:
            state.update(expected(number).tensors[name].tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("disabled", ["X86_V4 AVX512_ICL AVX512_SPR", "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"])
def test_outputs_have_one_digest_whatever_the_processor_can_do(disabled):
    code = f"import runpy; print(runpy.run_path({__file__!r})['outputs_digest']())"
    tests = str(Path(__file__).parents[2])
    setting = {"NPY_DISABLE_CPU_FEATURES": disabled, "OPENBLAS_CORETYPE": "Nehalem", "PYTHONPATH": tests}

    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **setting},
        capture_output=True,
        text=True,
        check=True,
    )

    assert outputs_digest() == other.stdout.strip()


def test_the_digest_is_the_one_of_every_release():
    """Pinned: other bits from equal inputs need a new strategy version, or groups fall apart."""
    assert outputs_digest() == "ce6c9e27baa91d3e1c1f1aa117deaf88352c1e207191c2bb6ca22204b0bd2985"
