"""Models in different float types: what they merge to and in which type (STRATEGIES 1.3)."""

from __future__ import annotations

import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import DTypeMismatchError, OverflowRefusedError, ParameterError
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.tensorfile import layout

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SHAPES = {"a.weight": (530, 1000), "b.weight": (30, 7), "c.bias": (17,), "d.scale": (), "e.none": (0, 3)}
USED = ("BF16", "F16", "F32")


def save(path: Path, seed: int, dtype: str, *, stored: str = "", scale: float = 1.0) -> Path:
    """A model with numbers of one element type, in another that holds them."""
    rng = np.random.default_rng(seed)
    tensors = {"ids": np.arange(9)}
    for name, shape in SHAPES.items():
        values = np.asarray(scale * rng.standard_normal(shape)).astype(TYPES[dtype])
        tensors[name] = values.astype(TYPES[stored or dtype])
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """(base in F32, models in three types)."""
    room = tmp_path_factory.mktemp("mixed")
    base = save(room / "base", 0, "F32")
    return base, [save(room / dtype, number, dtype) for number, dtype in enumerate(USED, start=1)]


def loaded(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


@pytest.mark.parametrize(
    "strategy", ["weight_average", "linear", "slerp", "task_arithmetic", "ties", "emr_merging", "sce"]
)
def test_a_merge_is_that_of_the_numbers_whatever_they_are_stored_in(mixed, tmp_path: Path, strategy: str):
    """Two of them: their digests, hence their order, differ, and a sum of two has none."""
    base, files = mixed
    wide = [
        save(tmp_path / f"wide-{dtype}", number, dtype, stored="F64") for number, dtype in enumerate(USED, 1)
    ]
    options = {"strategy": strategy, "base": base}

    merge_files(files[1:], tmp_path / "mixed", **options)
    merge_files(wide[1:], tmp_path / "wide", **options)

    found, expected = loaded(tmp_path / "mixed"), loaded(tmp_path / "wide")
    for name in SHAPES:
        assert found[name].dtype == np.float32  # The base's.
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("strategy", ["linear", "ties", "dare"])
def test_order_and_workers_change_no_bit(mixed, tmp_path: Path, strategy: str, has_base: bool):
    base, files = mixed
    options = {"strategy": strategy if has_base else "linear", "base": base if has_base else None}
    plain = merge_files(files, tmp_path / "plain", **options, workers=0)
    found = [merge_files(order, tmp_path / "out", **options) for order in itertools.permutations(files)]
    found.append(merge_files(files, tmp_path / "out", **options, workers=2))

    assert {each.file_sha256 for each in found} == {plain.file_sha256}
    assert {each.resolve_key for each in found} == {plain.resolve_key}


@pytest.mark.parametrize(
    ("types", "base", "dtype", "expected"),
    [
        (("BF16", "F16"), "", "", "F32"),
        (("BF16", "F32"), "", "", "F32"),
        (("F16", "F64"), "", "", "F64"),
        (("BF16", "F32"), "BF16", "", "BF16"),
        (("F32", "F32"), "BF16", "", "BF16"),
        (("BF16", "BF16"), "F32", "", "F32"),
        (("BF16", "F32"), "F32", "F16", "F16"),
    ],
)  # fmt: skip
def test_the_output_has_the_type_asked_for_or_the_bases_or_the_widest(
    tmp_path: Path, types, base, dtype, expected
):
    files = [save(tmp_path / f"in{number}", number, each) for number, each in enumerate(types)]
    of = save(tmp_path / "base", 7, base) if base else None

    for order in (files, files[::-1]):
        merge_files(order, tmp_path / "out", strategy="weight_average", base=of, dtype=dtype)

        found = loaded(tmp_path / "out")
        assert {found[name].dtype for name in SHAPES} == {np.dtype(TYPES[expected])}
        exact = sum(loaded(path)["a.weight"].astype(np.float64) for path in files) / 2
        step = float(ml_dtypes.finfo(TYPES[expected]).eps)
        np.testing.assert_allclose(found["a.weight"].astype(np.float64), exact, rtol=step, atol=1e-7)


def test_one_tensor_may_differ_and_the_rest_keeps_its_type(tmp_path: Path):
    first, second = save(tmp_path / "first", 1, "BF16"), save(tmp_path / "second", 2, "BF16")
    tensors = loaded(second)
    safetensors.numpy.save_file(tensors | {"c.bias": tensors["c.bias"].astype(np.float32)}, second)

    merge_files([first, second], tmp_path / "out", strategy="weight_average")

    found = loaded(tmp_path / "out")
    assert {name for name in SHAPES if found[name].dtype == np.float32} == {"c.bias"}


def test_integers_are_still_of_one_type(tmp_path: Path):
    first, second = save(tmp_path / "first", 1, "F32"), save(tmp_path / "second", 2, "BF16")
    safetensors.numpy.save_file(loaded(second) | {"ids": np.arange(9, dtype=np.int32)}, second)

    with pytest.raises(DTypeMismatchError, match="ids has element type I32, expected I64"):
        merge_files([first, second], tmp_path / "out", strategy="weight_average")


def test_what_does_not_fit_the_bases_type_is_refused(tmp_path: Path):
    base, wide = save(tmp_path / "base", 0, "F16"), save(tmp_path / "wide", 1, "F32", scale=1e6)

    with pytest.raises(OverflowRefusedError, match="too large for F16"):
        merge_files([wide], tmp_path / "out", strategy="weight_average", base=base)


@pytest.mark.parametrize("dtype", ["", "BF16"])
@pytest.mark.parametrize("strategy", ["linear", "dare_ties"])
def test_merge_equals_the_resolve_of_a_group_that_takes_any_float(
    mixed, tmp_path: Path, strategy: str, dtype: str
):
    base, files = mixed
    offline = merge_files(files, tmp_path / "offline", strategy=strategy, base=base, dtype=dtype)
    described, of = [describe_file(path) for path in files], describe_file(base)
    schema = of.manifest.schema
    policy = Policy(
        strategy=strategy,
        schema=schema.id,
        base=of.manifest.content,
        dtype=f"any:{dtype}" if dtype else "any",
    )
    used = [file.used for file in described]
    group = run_job(build_job(policy, schema, used, of.used, group_mode=True), tmp_path / "group")

    assert group.resolve_key == offline.resolve_key
    assert group.file_sha256 == offline.file_sha256
    with pytest.raises(DTypeMismatchError, match="expected F32"):
        build_job(
            Policy(strategy=strategy, schema=schema.id, base=of.manifest.content, dtype=dtype),
            schema,
            used,
            of.used,
            group_mode=True,
        )


def test_a_tensor_is_taken_over_only_from_inputs_stored_alike(mixed, tmp_path: Path):
    """Another type is another blob, hence another key: a second merge of the same files takes all over."""
    base, files = mixed
    options = {"strategy": "linear", "base": base, "reuses": True}
    first = merge_files(files, tmp_path / "out", **options)
    again = merge_files(files, tmp_path / "out", **options)

    assert (first.reused_tensors, again.file_sha256) == (0, first.file_sha256)
    assert again.reused_tensors == len(SHAPES)


EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


def save_eight_bits(path: Path, seed: int, dtype: str, *, wide: str = "") -> Path:
    """A model of eight bits, or its numbers in a wider type."""
    rng = np.random.default_rng(seed)
    specs, data = [], []
    for name, shape in sorted(SHAPES.items()):
        values = np.asarray(rng.standard_normal(shape)).astype(EIGHT_BITS[dtype])
        stored = values.astype(TYPES[wide]) if wide else values
        specs.append(TensorSpec(name=name, dtype=wide or dtype, shape=shape))
        data.append(np.ascontiguousarray(stored).tobytes())
    header, _ = layout(specs)
    path.write_bytes(b"".join([header, *data]))
    return path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", ["weight_average", "ties", "dare", "slerp", "regmean"])
def test_eight_bits_are_merged_as_the_numbers_that_they_are(tmp_path: Path, strategy: str, workers: int):
    """STRATEGIES 1.3: read-only. One of two: which of three is first decides the order of a sum."""
    params = {"fallback": "linear"} if strategy == "regmean" else {}
    base = [save_eight_bits(tmp_path / f"base{w}", 9, "F8_E4M3", wide=w) for w in ("", "F32")]
    files = [
        [
            save_eight_bits(tmp_path / f"{dtype}{w}", seed, dtype, wide=w)
            for seed, dtype in enumerate(EIGHT_BITS)
        ]
        for w in ("", "F32")
    ]
    options = {"strategy": strategy, "params": params, "workers": workers}
    if strategy == "dare":
        options["params"] = {"density": "1"}  # Masks follow from digests.

    narrow = merge_files(files[0], tmp_path / "narrow", base=base[0], **options)
    merge_files(files[1], tmp_path / "wide", base=base[1], dtype="BF16", **options)

    found, expected = loaded(tmp_path / "narrow"), loaded(tmp_path / "wide")
    assert {name: values.dtype for name, values in found.items()} == dict.fromkeys(SHAPES, "bfloat16")
    assert all(found[name].tobytes() == expected[name].tobytes() for name in SHAPES)
    assert narrow.warnings == () or strategy == "regmean"


def test_a_group_may_hold_eight_bits_and_never_writes_them(tmp_path: Path):
    files = [describe_file(save_eight_bits(tmp_path / f"{seed}", seed, "F8_E5M2")) for seed in range(2)]
    schema = files[0].manifest.schema
    policy = Policy(strategy="weight_average", strategy_version=1, schema=schema.id)
    job = build_job(policy, schema, [file.used for file in files], None, group_mode=True)

    run_job(job, tmp_path / "out")

    assert {str(values.dtype) for values in loaded(tmp_path / "out").values()} == {"bfloat16"}
    with pytest.raises(ParameterError, match="none of those of an output"):
        merge_files([tmp_path / "0"], tmp_path / "out", strategy="linear", dtype="F8_E5M2")


def test_codes_with_scales_are_refused_by_name(tmp_path: Path):
    """Averages of codes times averages of scales are no averages of weights."""
    codes = {"l.qweight": np.zeros((2, 2), np.int32), "l.scales": np.ones((1, 2), np.float16)}
    safetensors.numpy.save_file(codes, tmp_path / "q")

    with pytest.raises(DTypeMismatchError, match=r"/q is quantised \(GPTQ or AWQ; it has l\.qweight\)"):
        merge_files([tmp_path / "q", tmp_path / "q"], tmp_path / "out", strategy="linear")
