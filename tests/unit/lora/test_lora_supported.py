"""What of PEFT's configurations is an adapter here, what is refused, and what DoRA makes of a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.lora import expand_adapter, merge_adapters
from crdt_merge_protocol.errors import NonFiniteError, ParameterError, ShapeMismatchError
from support.adapters import SHAPES, dense, save_adapter, save_base

MODULES = ("layers.0.q_proj", "layers.0.mlp")


def save_dora(path: Path, without: str = "", **changes: np.ndarray) -> Path:
    rng = np.random.default_rng(5)
    lengths = {
        f"{m}.lora_magnitude_vector": rng.uniform(0.5, 2, SHAPES[m][0]).astype(np.float32)
        for m in MODULES
        if m != without
    }
    return save_adapter(path, 1, modules=MODULES, use_dora=True, others=lengths | changes)


def test_dora_gives_every_output_its_length(tmp_path: Path) -> None:
    base, adapter = save_base(tmp_path / "base.safetensors"), save_dora(tmp_path / "a")

    expand_adapter(adapter, tmp_path / "model.safetensors", base=base)

    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    stored = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    before = safetensors.numpy.load_file(base)
    for module in MODULES:
        changed = before[f"{module}.weight"].astype(float) + dense(adapter, module)
        lengths = stored[f"base_model.model.{module}.lora_magnitude_vector"]
        expected = [m * row / np.sqrt(sum(row**2)) for m, row in zip(lengths, changed, strict=True)]
        np.testing.assert_allclose(found[f"{module}.weight"], expected, rtol=1e-6, atol=1e-7)
    assert set(found) == set(before)
    np.testing.assert_array_equal(found["layers.1.q_proj.weight"], before["layers.1.q_proj.weight"])


def test_dora_without_its_base_is_refused_with_what_to_do(tmp_path: Path) -> None:
    adapter = save_dora(tmp_path / "a")
    for attempt in (merge_adapters, lambda paths, out: expand_adapter(paths[0], out)):
        with pytest.raises(ParameterError, match="use_dora") as caught:
            attempt([adapter], tmp_path / "out")
        assert "lora expand ADAPTER --base BASE" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("lengths", "error"),
    [(np.ones(23, np.float32), ShapeMismatchError), (np.full(24, np.nan, np.float32), NonFiniteError)],
)
def test_lengths_that_do_not_fit_are_refused(
    tmp_path: Path, lengths: np.ndarray, error: type[Exception]
) -> None:
    base = save_base(tmp_path / "base.safetensors")
    adapter = save_dora(tmp_path / "a", **{"layers.0.q_proj.lora_magnitude_vector": lengths})
    with pytest.raises(error, match=r"layers\.0\.q_proj"):
        expand_adapter(adapter, tmp_path / "model.safetensors", base=base)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"without": "layers.0.mlp"},
        {"layers.1.q_proj.lora_magnitude_vector": np.ones(24, np.float32)},
    ],
)
def test_factors_without_lengths_and_lengths_without_factors_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    base = save_base(tmp_path / "base.safetensors")
    adapter = save_dora(tmp_path / "a", **changes)
    with pytest.raises(ParameterError, match=r"layers\.\d\.\w+ has either factors or magnitudes"):
        expand_adapter(adapter, tmp_path / "model.safetensors", base=base)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "OLoRA"])
def test_factors_that_hold_a_part_of_the_base_are_refused(tmp_path: Path, start: str) -> None:
    adapter = save_adapter(tmp_path / "a", 1, init_lora_weights=start)
    with pytest.raises(ParameterError, match=f"init_lora_weights {start}") as caught:
        merge_adapters([adapter], tmp_path / "out")
    assert "path_initial_model_for_weight_conversion" in (caught.value.hint or "")


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_factors_that_began_as_nothing_are_taken(tmp_path: Path, start: object) -> None:
    adapter = save_adapter(tmp_path / "a", 1, init_lora_weights=start)
    assert merge_adapters([adapter], tmp_path / "out").modules == len(SHAPES)


@pytest.mark.parametrize(
    "name",
    ["layer_replication", "alora_invocation_tokens", "target_parameters", "lora_bias",
     "trainable_token_indices", "use_qalora", "use_bdlora", "arrow_config", "kasa_config"],
)  # fmt: skip
def test_what_factors_alone_do_not_tell_is_refused_by_name(tmp_path: Path, name: str) -> None:
    adapter = save_adapter(tmp_path / "a", 1, **{name: {"some": 1}})
    with pytest.raises(ParameterError, match=name):
        merge_adapters([adapter], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "is_warned"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", True),
        ("TheBloke/m-GPTQ", True),
        ("org/base", False),
        ("org/mint8b", False),
    ],
)
def test_a_quantised_base_is_warned_of(tmp_path: Path, name: str, *, is_warned: bool) -> None:
    adapter = save_adapter(tmp_path / "a", 1, base_model_name_or_path=name)
    merged = merge_adapters([adapter], tmp_path / "out")
    expanded = expand_adapter(adapter, tmp_path / "delta.safetensors")
    for result in (merged, expanded):
        assert any("quantised" in text for text in result.warnings) == is_warned
