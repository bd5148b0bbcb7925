"""The commands on adapters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from click.testing import CliRunner
from crdt_merge_node.cli.app import root


def adapter(path: Path, seed: int) -> str:
    path.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {
        "base_model.model.up.lora_A.weight": rng.standard_normal((2, 5)).astype(np.float32),
        "base_model.model.up.lora_B.weight": rng.standard_normal((7, 2)).astype(np.float32),
    }
    safetensors.numpy.save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return str(path)


def test_show_names_every_module(tmp_path: Path) -> None:
    result = CliRunner().invoke(root, ["lora", "show", adapter(tmp_path / "a", 1)])

    assert result.exit_code == 0, result.stderr
    assert "1 module of base org/base" in result.stdout
    assert "7x5" in result.stdout


def test_merge_and_expand_end_with_a_result(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)
    out = str(tmp_path / "out")
    merged = CliRunner().invoke(
        root, ["lora", "merge", first, second, "-o", out, "--weight", "1,3", "--rank", "3", "--json"]
    )
    assert merged.exit_code == 0, merged.stderr
    answer = json.loads(merged.stdout.splitlines()[-1])
    assert answer["schema"] == "lora-merge/1"
    assert answer["ranks"] == {"up": 3}
    assert 0 < answer["dropped"]["up"] < 1

    expanded = CliRunner().invoke(root, ["lora", "expand", out, "-o", str(tmp_path / "d.safetensors")])
    assert expanded.exit_code == 0, expanded.stderr
    assert safetensors.numpy.load_file(tmp_path / "d.safetensors")["up.weight"].shape == (7, 5)


def test_rows_of_a_parameter_may_name_adapters_by_their_directories(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)

    def merged(*options: str) -> dict[str, np.ndarray]:
        out = str(tmp_path / "out.safetensors")
        made = CliRunner().invoke(root, ["lora", "merge", first, second, "-o", str(tmp_path / "m"), *options])
        assert made.exit_code == 0, made.stderr
        assert CliRunner().invoke(root, ["lora", "expand", str(tmp_path / "m"), "-o", out]).exit_code == 0
        return safetensors.numpy.load_file(out)

    by_weight = merged("--strategy", "linear", "--weight", "3,1")
    by_name = merged("--strategy", "linear", "--param", "weight=#a=3;1")
    by_path = merged("--strategy", "linear", "--param", f"weight=#{second}=1;3")
    for name, values in by_weight.items():
        np.testing.assert_allclose(by_name[name], values, rtol=1e-6)
        np.testing.assert_array_equal(by_name[name], by_path[name])

    wrong = CliRunner().invoke(
        root, ["lora", "merge", first, second, "-o", str(tmp_path / "x"), "--param", "weight=#c=3;1"]
    )
    assert wrong.exit_code == 2
    assert "#c is none of the inputs" in wrong.stderr
    assert first in wrong.stderr
    assert not (tmp_path / "x").exists()


def test_a_directory_without_an_adapter_is_an_error_with_a_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(root, ["lora", "show", str(tmp_path)])

    assert result.exit_code != 0
    assert "adapter_config.json" in result.stderr


def test_no_adapter_is_written_over_its_inputs(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    result = CliRunner().invoke(root, ["lora", "merge", first, second, "-o", first])

    assert result.exit_code == 2
    assert "name another place" in result.stderr
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
