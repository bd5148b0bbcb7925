"""Outputs of adapters appear whole or not at all, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.lora import expand_adapter, factors, merge_adapters
from crdt_merge_node.lora.collection import read_members, set_of, weights_of
from crdt_merge_node.lora.dense import DenseRecipe
from crdt_merge_node.lora.merging import Merge, merge_set
from crdt_merge_node.lora.sinks import Target
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.resolve.files import read_header, read_tensor
from crdt_merge_node.resolve.job import ResolveCancelledError
from crdt_merge_protocol.errors import NonFiniteError
from crdt_merge_protocol.strategies.dtypes import decode_block
from support.adapters import SHAPES, dense, save_adapter, save_base


def merge(paths: list[Path], strategy: str, output: str) -> Merge:
    found = set_of(read_members(paths, weights_of(paths, None), SystemFs()))
    dense = DenseRecipe(strategy=strategy, params={}, group_mode=True)
    return Merge(found=found, dense=dense, output=output, rank="auto", base_name="")


def run(found: Merge, target: Target, **options: Any) -> None:
    settings = {"progress": lambda *_: None, "cancelled": lambda: False, "account": lambda *_: {"told": 1}}
    merge_set(found, target, **settings | options)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    (tmp_path / "in").mkdir()
    return [save_adapter(tmp_path / "in" / f"a{seed}", seed) for seed in (1, 2)]


@pytest.mark.parametrize("strategy", ["weight_average", "ties"])
@pytest.mark.parametrize("output", ["adapter", "delta"])
def test_a_cancelled_merge_leaves_nothing(
    paths: list[Path], tmp_path: Path, strategy: str, output: str
) -> None:
    target = Target(tmp_path / "out", "", SystemFs(), SystemRng())
    with pytest.raises(ResolveCancelledError):
        run(merge(paths, strategy, output), target, cancelled=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("strategy", ["weight_average", "ties"])
def test_what_a_killed_process_left_goes_with_the_next_output(
    paths: list[Path], tmp_path: Path, strategy: str
) -> None:
    left = tmp_path / ".out.4194999-00ff.part"
    left.mkdir()
    (left / "0.safetensors").write_bytes(b"half")
    run(merge(paths, strategy, "delta"), Target(tmp_path / "out", "", SystemFs(), SystemRng()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.provenance.json"]


def test_a_delta_of_shards_is_the_delta_of_one_file(paths: list[Path], tmp_path: Path) -> None:
    found = merge(paths, "weight_average", "delta")
    run(found, Target(tmp_path / "one", "", SystemFs(), SystemRng()))
    run(found, Target(tmp_path / "many", "", SystemFs(), SystemRng(), shard_bytes=2000))
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 1
    together = {k: v for path in shards for k, v in safetensors.numpy.load_file(path).items()}
    whole = safetensors.numpy.load_file(tmp_path / "one")
    assert together.keys() == whole.keys()
    assert all((together[name] == whole[name]).all() for name in whole)


def test_a_directory_of_somebody_is_not_replaced(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(InvalidRequestError, match="thesis"):
        merge_adapters(paths, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "all of it"


def test_an_earlier_adapter_is_replaced(paths: list[Path], tmp_path: Path) -> None:
    merge_adapters(paths, tmp_path / "out")
    before = (tmp_path / "out/adapter_model.safetensors").read_bytes()
    merge_adapters(paths[:1], tmp_path / "out")
    assert (tmp_path / "out/adapter_model.safetensors").read_bytes() != before


def test_values_that_do_not_fit_are_saturated_and_told(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", 1, modules=("layers.0.mlp",), alpha=1e9)
    result = merge_adapters([path], tmp_path / "out", dtype="F16", strategy="task_arithmetic")
    assert "did not fit" in result.warnings[0]
    values = safetensors.numpy.load_file(tmp_path / "out/adapter_model.safetensors").values()
    assert all(np.isfinite(each).all() for each in values)


def test_an_adapter_with_nan_is_refused(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", 1, others={"norm.weight": np.full(16, np.nan, np.float32)})
    with pytest.raises(NonFiniteError, match=r"norm\.weight"):
        merge_adapters([path], tmp_path / "out", base=save_base(tmp_path / "base"))


LAYERS = {"embed": (12, 7), "conv": (6, 5, 3, 3), "q": (9, 40), "k": (40, 9)}


def save_layers(path: Path, seed: int, *, fan_in_fan_out: bool) -> Path:
    """Write an adapter of an embedding, a convolution and two linear layers, of very unlike magnitudes."""
    rng, tensors = np.random.default_rng(seed), {}
    for module, (rows, columns, *kernel) in LAYERS.items():
        is_turned = module == "embed" or (fan_in_fan_out and not kernel)
        outputs, inputs = (columns, rows) if is_turned else (rows, columns)
        scales = np.exp2(rng.integers(-30, 30, 5))
        kind = "embedding_" if module == "embed" else ""
        end = "" if module == "embed" else ".weight"
        down = rng.standard_normal((5, inputs, *kernel)) * scales.reshape(5, *[1] * (1 + len(kernel)))
        up = rng.standard_normal((outputs, 5, *[1] * len(kernel)))
        tensors[f"base_model.model.{module}.lora_{kind}A{end}"] = down.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_{kind}B{end}"] = up.astype(np.float32)
    path.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
    text = {"peft_type": "LORA", "r": 5, "lora_alpha": 3.5, "fan_in_fan_out": fan_in_fan_out}
    (path / "adapter_config.json").write_text(json.dumps(text))
    return path


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("strategy", ["linear", "ties"])
def test_how_many_rows_are_in_memory_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, *, fan_in_fan_out: bool
) -> None:
    paths = [save_layers(tmp_path / f"a{s}", s, fan_in_fan_out=fan_in_fan_out) for s in range(3)]
    rng, base = np.random.default_rng(9), tmp_path / "base.safetensors"
    model = {f"{m}.weight": rng.standard_normal(s).astype(np.float32) for m, s in LAYERS.items()}
    safetensors.numpy.save_file(model, base)
    found = []
    for number, elements in enumerate((1, 50, 1 << 20)):
        monkeypatch.setattr(factors, "PART_ELEMENTS", elements)
        whole, delta = tmp_path / f"model{number}", tmp_path / f"delta{number}"
        merge_adapters(paths, whole, strategy=strategy, base=base)
        target = Target(delta, "F32", SystemFs(), SystemRng())
        run(merge(paths, strategy, "delta"), target)
        found.append((whole.read_bytes(), delta.read_bytes()))
    assert found[0] == found[1] == found[2]


def test_what_is_added_to_a_base_of_eight_bits_is_bfloat16(tmp_path: Path) -> None:
    """Eight bits are only read; what no adapter changes stays as it is."""
    kind = ml_dtypes.float8_e4m3fn
    tensors = {f"{m}.weight": np.full(shape, 0.5).astype(kind) for m, shape in SHAPES.items()}
    base = save_base(tmp_path / "base", **tensors)
    adapter = save_adapter(tmp_path / "a", 1, modules=("layers.0.mlp",))

    expand_adapter(adapter, tmp_path / "out", base=base)

    fs = SystemFs()
    found = {entry.spec.name: entry for entry in read_header(fs, tmp_path / "out").entries}
    assert {name: entry.spec.dtype for name, entry in found.items()} == {
        "norm.weight": "F32",
        "layers.0.mlp.weight": "BF16",
        "layers.0.q_proj.weight": "F8_E4M3",
        "layers.1.q_proj.weight": "F8_E4M3",
    }
    merged = decode_block("BF16", read_tensor(fs, tmp_path / "out", found["layers.0.mlp.weight"]))
    expected = (0.5 + dense(adapter, "layers.0.mlp")).reshape(-1).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(merged, expected.astype(float))
