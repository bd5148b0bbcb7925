"""Compiled loops return the bits of their numpy definitions, and numpy does the work where they cannot."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from crdt_merge_node.resolve import accelerate
from crdt_merge_node.resolve.job import TensorSource, UsedModel
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.blobs import (
    DTYPE_BYTES,
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
    blob_digest_of,
    contribution_digest,
)
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies import acceleration
from crdt_merge_protocol.strategies.acceleration import Digits, Draw, ScaledDifferences, StoredRows, install
from crdt_merge_protocol.strategies.contract import Block
from crdt_merge_protocol.strategies.dtypes import decode_block, encode_array
from crdt_merge_protocol.strategies.kernels import combine
from crdt_merge_protocol.strategies.randomness import keep_mask, uniform, words
from crdt_merge_protocol.strategies.reductions import leaf_products, leaf_sums
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import get, names, plain_names
from crdt_merge_protocol.strategies.selection import Selection, advance
from crdt_merge_protocol.strategies.trimming import magnitudes_of, tally_of_each
from safetensors.numpy import save_file
from support.synthetic import case_of

pytest.importorskip("numba")
from crdt_merge_node.resolve import compiled_code

SIZES = (1, 3, 2_047, 2_049, 5_001)
HOSTILE = np.array([0.0, -0.0, 5e-324, -5e-324, 1e-45, -1e-40, 3.4e38, -3.4e38, 1.0, -1.0, 2.0**-126, 1 / 3])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(accelerate.CACHE_VARIABLE, str(tmp_path_factory.mktemp("kernels")))
        assert not accelerate.install_compiled()

        yield acceleration.current()


@pytest.fixture(autouse=True)
def _definitions_afterwards():
    yield
    install(None)


def both(accelerator, work):
    install(None)
    expected = work()
    install(accelerator)
    return work(), expected


def numbers(rng, size, dtype):
    """Values of an element type: ordinary ones, hostile ones, ties."""
    values = np.where(rng.random(size) < 0.3, rng.choice(HOSTILE, size), rng.standard_normal(size))
    values[rng.random(size) < 0.2] = 0.5
    stored, _ = encode_array(dtype, values, "saturate")
    return stored.tobytes()


def block_of(dtype, raw, base=None):
    rows = StoredRows(dtype, raw, lambda _, data: decode_block(dtype, data))
    size = len(raw[0]) // DTYPE_BYTES[dtype]
    return Block(tensor_index=0, start=0, stop=size, inputs=rows, base=base)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_rounding_is_that_of_numpy_also_where_it_ties_or_vanishes(compiled, dtype):
    rng = np.random.default_rng(1)
    halfway = rng.integers(0, 0x7F7F, 4_001).astype(np.uint32) << 16 | 0x8000
    values = np.concatenate([HOSTILE, halfway.view(np.float32), rng.standard_normal(999) * 1e-39])

    found, expected = both(compiled, lambda: encode_array(dtype, values, "saturate"))

    assert found[0].tobytes() == expected[0].tobytes()


@pytest.mark.parametrize("place", [3, 17])  # In the eights, and in what is left of them.
@pytest.mark.parametrize("value", [1e39, -1e39, 3.3962e38, np.inf, np.nan])
def test_what_does_not_fit_is_left_to_numpy(compiled, value, place):
    values = np.arange(19.0)
    values[place] = value

    found, expected = both(compiled, lambda: encode_array("BF16", values, "saturate"))

    assert found[0].tobytes() == expected[0].tobytes()
    assert found[1] == expected[1] == 1
    assert not compiled.encode("BF16", values, np.empty(19, np.uint16))


@pytest.mark.parametrize("place", [3, 17])
@pytest.mark.parametrize(("dtype", "last"), [("F32", 0x7F7FFFFF), ("BF16", 0x7F7F7FFF), ("F16", 0x477FEFFF)])
def test_the_last_number_that_fits_is_told_from_the_first_that_does_not(compiled, dtype, last, place):
    values = np.arange(19.0)
    for bits in (last, last + 1):
        values[place] = np.array([bits], np.uint32).view(np.float32)[0] if bits < 0x7F800000 else 2.0**128

        fits = compiled.encode(dtype, values, np.empty(19 * DTYPE_BYTES[dtype], np.uint8))

        assert fits == (bits == last)


@pytest.mark.parametrize(("dtype", "infinity"), [("BF16", 0x7F80), ("F16", 0x7C00)])
def test_every_short_float_is_decoded_as_numpy_does(compiled, dtype, infinity):
    raw = np.arange(1 << 16, dtype=np.uint16)
    raw = raw[(raw & infinity) != infinity].tobytes()

    found, expected = both(compiled, lambda: decode_block(dtype, raw))

    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("k", range(1, 10))
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_sums_are_those_of_numpy(compiled, dtype, k):
    rng = np.random.default_rng(k)
    size = SIZES[k % len(SIZES)]
    raw, origin = [numbers(rng, size, dtype) for _ in range(k)], numbers(rng, size, dtype)
    coefficients = [*rng.standard_normal(k - 1), 0.0] if k > 2 else [1.0, -1 / 3][:k]
    for base in (None, origin):
        block = block_of(dtype, raw, None if base is None else decode_block(dtype, base))

        found, expected = both(compiled, lambda block=block: combine(block, coefficients))

        assert found.tobytes() == expected.tobytes()
        for out_dtype in ("F32", "BF16"):
            stored, misfits = encode_array(out_dtype, expected, "saturate")
            out = np.empty_like(stored)
            is_done = compiled.combine_stored(block.inputs, base, coefficients, out_dtype, out)
            assert is_done == (misfits == 0)
            assert not is_done or out.tobytes() == stored.tobytes()


def test_no_coefficient_at_all_leaves_the_base(compiled):
    base = np.array([-0.0, 1.0, 5e-324])
    block = block_of("F64", [np.ones(3).tobytes()], base)

    found, expected = both(compiled, lambda: combine(block, [0.0]))

    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 65_537])
def test_masks_are_those_of_numpys_philox(compiled, start):
    for count in (1, 2, 5, 4_099):
        for share in (Fraction(1, 2), Fraction(1, 10), Fraction(0), Fraction(1, 2**53)):
            found, expected = both(
                compiled, lambda count=count, share=share: keep_mask(b"0123456789abcdef", start, count, share)
            )
            assert found.tobytes() == expected.tobytes()
            remembered = keep_mask(b"0123456789abcdef", start, count, share)
            assert remembered.tobytes() == expected.tobytes()
        found, expected = both(compiled, lambda count=count: uniform(b"0123456789abcdef", start, count))
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 9, 4_096, 65_535, 65_536, 65_537, 200_001])
def test_sums_over_leaves_are_those_of_numpy(compiled, size):
    first, second = np.random.default_rng(size).standard_normal((2, size))
    first[: min(size, 3)] = -0.0

    for work in (lambda: leaf_sums(first), lambda: leaf_products(first, second)):
        found, expected = both(compiled, work)
        assert found.tobytes() == expected.tobytes()


def same_tally(found, expected):
    assert (found.digits, found.above, found.is_exact) == (expected.digits, expected.above, expected.is_exact)
    assert found.values.tolist() == expected.values.tolist()
    assert str(found.counts) == str(expected.counts)


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_candidates_are_counted_as_numpy_counts_them(compiled, is_masked, dtype):
    rng = np.random.default_rng(2)
    size = 70_001
    raw, base = [numbers(rng, size, dtype) for _ in range(3)], rng.standard_normal(size)
    base[::7] = -0.0
    block = block_of(dtype, raw, base)
    masks, scales = [rng.random(size) < 0.5, None, rng.random(size) < 0.1], [3.0, 1.0, -0.5]
    write = ScaledDifferences(block, masks, scales) if is_masked else ScaledDifferences(block)
    ordered = [
        np.sort(np.concatenate([part.copy() for part in magnitudes_of(block, write, i)])) for i in range(3)
    ]
    searches = {i: Selection(rank=rank) for i, rank in enumerate((1, 999, size // 2))}
    ranks = {i: search.rank for i, search in searches.items()}
    while not all(search.is_done for search in searches.values()):
        found, expected = both(compiled, lambda searches=searches: tally_of_each(searches, block, write))
        assert found.keys() == expected.keys()
        for i, tally in found.items():
            same_tally(tally, expected[i])
            searches[i] = advance(searches[i], [tally])
    assert [search.magnitude for search in searches.values()] == [ordered[i][-ranks[i]] for i in ranks]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 7, 8, 2_047, 2_049, 40_001])
def test_ranges_are_counted_as_numpy_counts_them(compiled, size, share):
    """Narrow and wide ones, those of one value, and those with more candidates than are listed."""
    rng = np.random.default_rng(size)
    block = block_of("F32", [numbers(rng, size, "F32") for _ in range(2)], np.zeros(size))
    write = ScaledDifferences(block)
    for i in range(2):
        bits = np.sort(next(magnitudes_of(block, write, i)).view(np.int64))
        low, high = int(bits[int((1 - share) * (size - 1))]), int(bits[-1]) + 1
        for digits in (Digits.between(low, high), Digits.between(low, low + 1), Digits.between(0, low + 1)):
            search = {i: Selection(rank=1, digits=digits)}
            found, expected = both(compiled, lambda search=search: tally_of_each(search, block, write))
            same_tally(found[i], expected[i])


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 511, 513, 5_001])
def test_what_is_dropped_is_what_numpy_drops(compiled, dtype, size):
    """One contribution has only some changes, another none, a third loses nothing, a fourth everything."""
    rng = np.random.default_rng(size)
    raw = [numbers(rng, size, dtype) for _ in range(5)]
    base = decode_block(dtype, raw[0])
    base[size // 2 :] = rng.standard_normal(size - size // 2)
    block = replace(block_of(dtype, raw, base), start=3 * 65_536, stop=3 * 65_536 + size)
    key = b"0123456789abcdef"
    draws = [Draw(key, 1 << 63), Draw(key[::-1], 3 << 60), None, Draw(key, 0), Draw(key, (1 << 64) - 2048)]
    coefficients = [2.0, -1 / 3, 1.0, 5.0, 0.0]
    out = np.zeros(size)

    assert compiled.drop(block, draws, coefficients, out)

    install(None)
    expected = np.zeros(size)
    for draw, values, coefficient in zip(draws, block.inputs, coefficients, strict=True):
        difference = values - base
        if draw is not None:
            difference *= words(draw.key, block.start, size) < np.uint64(draw.bound)
        if coefficient:
            expected += difference * coefficient
    expected += base
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("k", range(1, 8))
@pytest.mark.parametrize("profile", ["paper", "mergekit"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_elections_of_few_and_many_have_the_bits_of_numpy(compiled, k, profile, dtype):
    """Votes that cancel out, magnitudes equal to the threshold, zeros of both signs, subnormal numbers."""
    rng = np.random.default_rng(k)
    size = 65_536 + 8 * k + k

    def model():
        values = np.round(rng.standard_normal(size), 1)
        values[rng.random(size) < 0.1] = -0.0
        values[rng.random(size) < 0.1] = 6e-8
        return {"a": values.astype(dtype)}

    models, base = [model() for _ in range(k)], model()

    def work():
        params = {"profile": profile, "density": "0.4"}
        return merge_arrays("ties", models, base=base, params=params, block_elements=65_536)

    found, expected = both(compiled, work)

    assert found.decisions == expected.decisions
    assert found.tensors["a"].tobytes() == expected.tensors["a"].tobytes()


ELECTIONS = [
    ("ties", {}),
    ("ties", {"scope": "tensor", "density": "0.5", "merge_func": "max", "lambda": "0.7"}),
    ("ties", {"merge_func": "sum", "elect": "count"}),
    ("ties", {"profile": "mergekit", "density": "0.3"}),
    ("ties", {"profile": "mergekit", "density": "0.3", "normalize": "false", "elect": "count"}),
    ("ties", {"density": "1"}),
    ("dare", {"density": "0.3"}),
    ("dare", {"rescale": "l1"}),
    ("dare_ties", {"density": "0.4", "ties_density": "0.5"}),
    ("dare_ties", {"profile": "mergekit", "density": "0.4", "ties_density": "0.5"}),
    ("weight_average", {}),
    ("task_arithmetic", {"lambda": "0.3"}),
    ("slerp", {}),
]


@pytest.mark.parametrize("weights", [None, [1, 2, 3, Fraction(1, 3)]])
@pytest.mark.parametrize(("strategy", "params"), ELECTIONS)
def test_whole_merges_have_the_bits_of_numpy(compiled, strategy, params, weights):
    rng = np.random.default_rng(3)
    shapes = {"a": (70_003,), "b": (37, 41), "c": ()}

    def model():
        return {name: np.round(rng.standard_normal(shape), 1) for name, shape in shapes.items()}

    models, base = [model() for _ in range(4)], model()

    found, expected = both(
        compiled,
        lambda: merge_arrays(
            strategy, models, base=base, params=params, weights=weights, block_elements=65_536
        ),
    )

    assert found.decisions == expected.decisions
    for name in shapes:
        assert found.tensors[name].tobytes() == expected.tensors[name].tobytes(), name


def test_without_a_compiler_numpy_does_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "crdt_merge_node.resolve.compiled_code", None)

    why = accelerate.install_compiled()

    assert "compiled_code" in why
    assert acceleration.current() is None


def test_where_no_memory_may_be_executable_numpy_does_the_work(compiled):
    """As under systemd's MemoryDenyWriteExecute; a kernel older than 6.3 cannot be asked for it."""
    assert not accelerate.compile_loops()
    code = "import ctypes; status = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)\n"
    code += "from crdt_merge_node.resolve.accelerate import install_compiled\n"
    code += "from crdt_merge_protocol.strategies.acceleration import current\n"
    code += "why = install_compiled(); print(status, bool(why), current() is None)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if found.stdout.startswith("-1"):
        pytest.skip("this kernel has no such protection")
    assert found.stdout.split() == ["0", "True", "True"]


def test_a_loop_that_is_wrong_is_not_used(compiled, monkeypatch):
    monkeypatch.setattr(type(compiled), "encode", lambda *_: False)

    assert accelerate.install_compiled().startswith("ArithmeticError")
    assert acceleration.current() is None


def test_the_cache_is_this_users_or_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(accelerate.CACHE_VARIABLE, raising=False)
    place = tmp_path / "crdt-merge-node" / "kernels"
    place.mkdir(parents=True)
    place.chmod(0o777)

    assert accelerate._place() is None
    assert "no directory" in accelerate.install_compiled()
    assert not accelerate.compiled_bytes(accelerate.WORTH_COMPILING_ELEMENTS)

    place.chmod(0o700)
    assert accelerate._place() == place


def test_nothing_is_compiled_where_somebody_switched_it_off(monkeypatch):
    monkeypatch.setenv(accelerate.CACHE_VARIABLE, "off")

    assert accelerate.install_compiled()
    assert not accelerate.compiled_bytes(accelerate.WORTH_COMPILING_ELEMENTS)


def test_small_jobs_load_nothing_and_only_large_ones_wait_for_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv(accelerate.CACHE_VARIABLE, str(tmp_path))

    assert not accelerate.compiled_bytes(accelerate.WORTH_ELEMENTS)
    assert accelerate.compiled_bytes(accelerate.WORTH_COMPILING_ELEMENTS) == accelerate.COMPILING_BYTES
    (tmp_path / f"{accelerate.release()}-host.o").touch()
    assert accelerate.compiled_bytes(accelerate.WORTH_ELEMENTS) == accelerate.LOADED_BYTES
    assert not accelerate.compiled_bytes(accelerate.WORTH_ELEMENTS - 1)
    drawn = accelerate.WORTH_DRAWN_ELEMENTS
    assert accelerate.compiled_bytes(drawn, is_random=True) == accelerate.LOADED_BYTES
    assert not accelerate.compiled_bytes(drawn - 1, is_random=True)


def test_code_of_another_release_makes_room(tmp_path, monkeypatch, compiled):
    """What is loaded is named by everything that it depends on."""
    monkeypatch.setattr(accelerate.subprocess, "run", lambda command, **_: Path(command[-1]).touch())
    monkeypatch.setenv(accelerate.CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "old.o").touch()

    assert not accelerate.compile_loops()

    name = f"{accelerate.release()}-{compiled_code.host()}.o"
    assert [path.name for path in tmp_path.glob("*.o")] == [name]


def test_neither_commands_nor_the_daemon_import_the_compiler():
    code = "import sys, crdt_merge_node.cli, crdt_merge_node.runtime, crdt_merge_node.resolve.run, "
    code += "crdt_merge_node.resolve.worker; print({'numba', 'llvmlite'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("fisher_merge", {"fisher_power": "0.5", "cap": "1.5", "normalize": "tensor_mean"}),
        ("fisher_merge", {"fisher_power": "2", "floor": "0"}),
        ("negative_merge", {"lambda": "0.7", "consensus": "0.5"}),
        ("negative_merge", {"lambda": "1", "consensus": "1"}),
    ],
)
def test_means_of_what_informs_or_agrees_have_the_bits_of_numpy(compiled, name, params):
    rng = np.random.default_rng(6)

    def model():
        return {"a": np.round(rng.standard_normal((300, 231)), 1).astype(np.float32)}

    made = case_of(name, [model() for _ in range(5)], model(), params)

    found, expected = both(compiled, made.merge)

    assert found.tensors["a"].tobytes() == expected.tensors["a"].tobytes()


@pytest.mark.parametrize("name", names())
def test_every_strategy_has_the_bits_of_numpy(compiled, name):
    rng = np.random.default_rng(4)
    shapes = {"a": (129, 33), "b": (7,), "c": (), "d": (0,)}

    def model():
        return {n: np.asarray(rng.integers(-6, 7, shape) / 4, np.float32) for n, shape in shapes.items()}

    made = case_of(name, [model() for _ in range(5)], model(), None)

    found, expected = both(compiled, made.merge)

    assert found.decisions == expected.decisions
    assert {n: x.tobytes() for n, x in found.tensors.items()} == {
        n: x.tobytes() for n, x in expected.tensors.items()
    }


@pytest.mark.parametrize("name", plain_names())
def test_every_job_writes_the_bytes_of_numpy(compiled, name, tmp_path):
    """Stored elements are read where they are, and the digests of inputs and output are made on the way."""
    rng = np.random.default_rng(5)
    specs = [
        TensorSpec(name="brain", dtype="BF16", shape=(4_099,)),
        TensorSpec(name="half", dtype="F16", shape=(33, 9)),
        TensorSpec(name="single", dtype="F32", shape=(130, 41)),
        TensorSpec(name="wide", dtype="F64", shape=(31,)),
    ]
    schema = Schema.of(specs)

    def model():
        data = {spec.name: numbers(rng, spec.numel, spec.dtype) for spec in specs}
        manifest = Manifest.of(
            ManifestEntry(spec=spec, blob=blob_digest_of(data[spec.name])) for spec in schema.specs
        )
        sources = {key: TensorSource(None, 0, len(raw), raw) for key, raw in data.items()}
        digest = contribution_digest(kind="model", content=manifest.content, weight=WEIGHT_ONE)
        return UsedModel(digest, WEIGHT_ONE, manifest, sources)

    models, base = [model() for _ in range(2)], model()
    has_base = get(name).base != "unused"
    policy = Policy(strategy=name, schema=schema.id, base=base.manifest.content if has_base else None)
    policy = replace(policy, strategy_version=get(name).version)
    job = build_job(policy, schema, models, base if has_base else None, group_mode=True)

    found, expected = both(compiled, lambda: run_job(job, tmp_path / "out.safetensors"))

    assert found.output_digest == expected.output_digest
    assert found.file_sha256 == expected.file_sha256
    assert found.warnings == expected.warnings


def test_models_of_different_types_merge_to_the_same_bits(compiled, tmp_path):
    """Loops are of one type: such blocks are decoded first, and their numbers go on as doubles."""
    rng = np.random.default_rng(5)
    types = [np.float32, np.float16, ml_dtypes.bfloat16, np.float32]
    files = [tmp_path / f"in{number}" for number in range(4)]
    for file, dtype in zip(files, types, strict=True):
        save_file({"w": rng.standard_normal((300, 257)).astype(dtype)}, file)

    for strategy in ("linear", "ties", "dare", "dare_ties", "sce", "model_breadcrumbs"):
        found = [
            merge_files(files[:3], tmp_path / "out", strategy=strategy, base=files[3], workers=0).file_sha256
            for accelerator in (None, compiled)
            if install(accelerator) is None
        ]
        assert found[0] == found[1], strategy
