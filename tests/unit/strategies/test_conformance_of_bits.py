"""What a merge may look at and what it may take: no order, block, process or seed shows in its bits."""

import ast
import inspect
import pickle
import random
import time
import tracemalloc

import numpy as np
import pytest
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.registry import get
from support.conformance import (
    BITWISE,
    COUNT,
    EVERY,
    SHAPES,
    assert_same,
    case,
    content,
    tall,
    uses_linear_algebra,
)


@EVERY
def test_the_order_and_repetition_of_inputs_do_not_show(name):
    made = case(name)
    shuffled = [*range(COUNT), 1, 3]
    random.Random(5).shuffle(shuffled)

    assert_same(made.merge(weights=[1, 2, 3, 1, 1]), made.merge(weights=[1, 2, 3, 1, 1], order=shuffled))


@EVERY
def test_inputs_are_read_only_and_outputs_are_new(name, monkeypatch):
    made = case(name)
    before = [{key: x.copy() for key, x in each.items()} for each in (*made.models, made.base)]
    kind = type(get(name))
    merge = kind.merge

    def watched(self, context, state, block):
        given = [*block.inputs, *block.artefacts, *([] if block.base is None else [block.base])]
        assert not any(x.flags.writeable for x in given)
        out = merge(self, context, state, block)
        assert out.dtype == np.float64
        assert out.shape == (block.stop - block.start,)
        assert out.flags.writeable
        assert not any(np.shares_memory(out, x) for x in given)
        return out

    monkeypatch.setattr(kind, "merge", watched)
    made.merge()

    for each, copy in zip((*made.models, made.base), before, strict=True):
        assert all(np.array_equal(each[key], copy[key]) for key in SHAPES)


@EVERY
def test_blocks_compaction_and_the_way_between_processes_do_not_show(name, monkeypatch):
    """SCENARIOS S13. Values on a grid make ties at thresholds and cancelled votes common."""
    rng = np.random.default_rng(11)
    shapes = {"a": tall(name, 4100), "b": (500,), "s": ()}
    base = {key: np.asarray(rng.integers(-50, 50, shape) / 16) for key, shape in shapes.items()}
    models = [
        {key: x + np.asarray(rng.integers(-99, 99, x.shape) / 64) for key, x in base.items()}
        for _ in range(COUNT)
    ]
    made = case(name, models=models, base=base)
    whole = made.merge(block_elements=8 * LEAF_ELEMENTS)
    kind = type(get(name))
    observe, end_pass = kind.observe, kind.end_pass

    def travelled(self, *arguments):
        return pickle.loads(pickle.dumps(observe(self, *arguments)))

    def compacted(self, context, state, pass_no, partials):
        some = self.compact(context, pass_no, list(partials[1:]))
        ordered = sorted([*partials[:1], *some], key=lambda item: item[0])
        return pickle.loads(pickle.dumps(end_pass(self, context, state, pass_no, ordered)))

    monkeypatch.setattr(kind, "observe", travelled)
    monkeypatch.setattr(kind, "end_pass", compacted)

    assert_same(whole, made.merge(block_elements=LEAF_ELEMENTS))


@EVERY
def test_only_random_strategies_see_the_seed(name):
    made = case(name)
    first, again, other = (content(made.merge(seed=seed)) for seed in (b"1", b"1", b"2"))

    assert first == again
    assert (first != other) == get(name).is_random


BANNED = {
    np: [
        "dot", "vdot", "inner", "matmul", "einsum", "tensordot", "exp", "exp2", "expm1", "log", "log2",
        "log10", "log1p", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2", "sinh", "cosh",
        "tanh", "power", "float_power", "cbrt", "hypot", "sum", "mean", "var", "std", "average", "median",
    ],
    np.linalg: ["norm", "svd", "qr", "eig", "eigh", "eigvalsh", "solve", "inv", "pinv", "det", "lstsq",
                "cholesky", "matrix_rank", "multi_dot"],
    np.random: ["default_rng", "random", "rand", "randn", "normal", "uniform", "integers", "seed", "randint",
                "permutation", "shuffle", "choice", "RandomState", "Generator", "PCG64"],
    random: ["random", "shuffle", "randint", "choice", "sample", "seed", "uniform"],
    time: ["time", "monotonic", "perf_counter", "time_ns"],
}  # fmt: skip
"""What has other bits elsewhere, or at another time."""


@pytest.mark.parametrize("name", BITWISE)
def test_bitwise_strategies_use_nothing_whose_bits_differ(name, monkeypatch):
    made = case(name)
    expected = content(made.merge())

    def refuse(what):
        def call(*_arguments, **_options):
            raise AssertionError(f"{what} was called")

        return call

    # Products of slices are exact whatever multiplies them: see ``linear_algebra``.
    is_exact = uses_linear_algebra(name)
    for module, functions in BANNED.items():
        for function in functions:
            if hasattr(module, function) and not (is_exact and function == "matmul"):
                monkeypatch.setattr(module, function, refuse(f"{module.__name__}.{function}"))

    assert content(made.merge()) == expected


@pytest.mark.parametrize("name", BITWISE)
def test_the_source_of_bitwise_strategies_has_no_product_of_matrices_and_no_float_sum(name):
    """Operators and methods of arrays cannot be replaced in a test; they can be read."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(type(get(name)))))

    for node in ast.walk(tree):
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)), ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in {"dot", "mean", "std", "var", "sum", "cumprod"}, ast.unparse(node)


@EVERY
def test_memory_beyond_the_block_is_what_is_declared(name):
    """STRATEGIES D. Numpy reports its buffers to tracemalloc; a megabyte is chunks, whatever the size."""
    rng = np.random.default_rng(2)
    shape = tall(name, 1500)
    models = [{"w": rng.normal(size=shape)} for _ in range(COUNT)]
    made = case(name, models=models, base={"w": rng.normal(size=shape)})
    strategy, peaks = get(name), []
    kind = type(strategy)
    context, state, block = last_merge(kind, made)
    if strategy.granularity(context, 0) == "elements":
        declared = 8 * block.inputs[0].size * (COUNT + 6)
    else:
        declared = strategy.scratch_bytes(context, 0)

    for _ in range(2):  # The first call fills caches that stay.
        tracemalloc.start()
        out = strategy.merge(context, state, block)
        peaks.append(tracemalloc.get_traced_memory()[1] - out.nbytes)
        tracemalloc.stop()

    assert peaks[-1] <= 1.5 * declared + (1 << 20)


def last_merge(kind, made):
    """Return the arguments of the last call of a strategy's merge."""
    calls = []
    merge = kind.merge

    def kept(self, context, state, block):
        calls.append((context, state, block))
        return merge(self, context, state, block)

    kind.merge = kept
    try:
        made.merge()
    finally:
        kind.merge = merge
    return calls[-1]


@EVERY
def test_an_estimate_of_time_grows_with_the_model(name):
    small, large = (
        case(name, models=[{"w": np.ones(shape, np.float32)}] * COUNT, base={}).context
        for shape in ((8, 8), (64, 64))
    )
    strategy = get(name)

    assert 0 < strategy.nanoseconds(small, 0) < strategy.nanoseconds(large, 0)
