"""Slices of layers are stacked: numbered anew, scaled as asked, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.lora.sinks import Target
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.recipes.stacking import parse_stack, write_stack
from crdt_merge_node.resolve.files import read_header, read_tensor
from crdt_merge_node.resolve.job import ReportProgress
from crdt_merge_protocol.errors import ParameterError, ResolveError
from crdt_merge_protocol.strategies.dtypes import decode_block

SLICES = """
merge_method: passthrough
slices:
  - sources:
      - model: a
        layer_range: [0, 3]
        parameters: {{scale: [{{filter: o_proj, value: 0}}, {{filter: down, value: [1, 0.5]}}]}}
  - sources: [{{model: b, layer_range: [1, 4]}}]
    parameters: {{int8_mask: true}}
{more}
"""


def save_model(path: Path, seed: int, layers: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in ("o_proj", "down", "norm")]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    model = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in names}
    safetensors.numpy.save_file(model, path)
    return model


def stacked(
    place: Path, text: str, dtype: str = "", progress: ReportProgress = lambda *_: None
) -> dict[str, np.ndarray]:
    stack = parse_stack(text)
    assert stack is not None
    target = Target(place / "out.safetensors", dtype, SystemFs(), SystemRng())
    write_stack(stack, target, path_of=lambda name: place / name, progress=progress)
    return safetensors.numpy.load_file(place / "out.safetensors")


def test_layers_are_numbered_anew_and_scaled(tmp_path: Path) -> None:
    a, b = save_model(tmp_path / "a", 1), save_model(tmp_path / "b", 2)

    found = stacked(tmp_path, SLICES.format(more=""))

    expected = {
        "model.embed_tokens.weight": a["model.embed_tokens.weight"],
        "model.norm.weight": b["model.norm.weight"],
        "lm_head.weight": b["lm_head.weight"],
    }
    for layer, (model, source, share) in enumerate(
        [(a, 0, 1.0), (a, 1, 0.75), (a, 2, 0.5), (b, 1, None), (b, 2, None), (b, 3, None)]
    ):
        for part in ("o_proj", "down", "norm"):
            scale = 1.0 if share is None else {"o_proj": 0.0, "down": share, "norm": 1.0}[part]
            values = model[f"model.layers.{source}.{part}.weight"]
            expected[f"model.layers.{layer}.{part}.weight"] = np.float32(scale) * values
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_the_element_type_of_the_configuration_is_that_of_the_output(tmp_path: Path) -> None:
    save_model(tmp_path / "a", 1)
    save_model(tmp_path / "b", 2)
    found = stacked(tmp_path, SLICES.format(more="dtype: float16"))
    assert {values.dtype for values in found.values()} == {np.dtype(np.float16)}


def test_outputs_of_gpt_neox_come_from_the_last_slice_though_their_name_holds_embed(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        model = dict.fromkeys(
            ("gpt_neox.embed_in.weight", "gpt_neox.layers.0.w", "embed_out.weight"), np.full(2, number, "<f4")
        )
        safetensors.numpy.save_file(model, tmp_path / name)
    sources = (f"sources: [{{model: {name}, layer_range: [0, 1]}}]" for name in "ab")

    found = stacked(
        tmp_path, f"{{merge_method: passthrough, slices: [{', '.join(f'{{{s}}}' for s in sources)}]}}"
    )

    assert {name: values[0] for name, values in found.items()} == {
        "gpt_neox.embed_in.weight": 0,
        "gpt_neox.layers.0.w": 0,
        "gpt_neox.layers.1.w": 1,
        "embed_out.weight": 1,
    }


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    save_model(tmp_path / "a", 1)
    save_model(tmp_path / "b", 2)
    seen: list[tuple[int, int]] = []

    found = stacked(
        tmp_path, SLICES.format(more=""), progress=lambda done, total, _step: seen.append((done, total))
    )

    total = sum(values.nbytes for values in found.values())
    assert seen[0] == (0, total)
    assert seen[-1] == (total - 3 * 4 * 4, total)


def test_what_is_ignored_is_noted_and_other_configurations_are_no_stacks() -> None:
    stack = parse_stack(SLICES.format(more=""))
    assert stack is not None
    assert stack.layers == 6
    assert stack.notes == ("int8_mask was ignored: it only saves memory there",)
    for text in ("[", "merge_method: linear", "merge_method: passthrough\nmodels: [{model: a}]"):
        assert parse_stack(text) is None


@pytest.mark.parametrize(
    ("more", "problem"),
    [("tokenizer_source: base", "tokenizer_source"), ("parameters: {density: 1}", "parameter density"),
     ("dtype: int4", "dtype int4")],
)  # fmt: skip
def test_what_is_not_supported_is_named(more: str, problem: str) -> None:
    with pytest.raises(ParameterError, match=problem):
        parse_stack(SLICES.format(more=more))


@pytest.mark.parametrize(
    "slice_",
    ["{sources: []}", "{sources: [{model: a, layer_range: [2, 2]}]}", "{sources: [{model: a}]}",
     "{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}", "text"],
)  # fmt: skip
def test_a_slice_that_is_none_is_refused_by_its_place(slice_: str) -> None:
    with pytest.raises(ParameterError, match=r"slices\[0\]"):
        parse_stack(f"{{merge_method: passthrough, slices: [{slice_}]}}")


@pytest.mark.parametrize("stop", ["4", str(10**18)])
def test_a_layer_that_a_model_has_not_is_named_and_nothing_is_written(tmp_path: Path, stop: str) -> None:
    save_model(tmp_path / "a", 1)
    save_model(tmp_path / "b", 2, layers=2)
    with pytest.raises(ResolveError, match=r"slices\[1\] takes layer 2 of b, which has 2"):
        stacked(tmp_path, SLICES.format(more="").replace("[1, 4]", f"[1, {stop}]"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_merge_stacks_what_a_configuration_stacks(tmp_path: Path) -> None:
    save_model(tmp_path / "a", 1)
    save_model(tmp_path / "b", 2)
    text = SLICES.format(more="").replace("model: a", f"model: {tmp_path / 'a'}")
    (tmp_path / "stack.yml").write_text(text.replace("model: b", f"model: {tmp_path / 'b'}"))
    output = tmp_path / "model.safetensors"
    arguments = ["merge", "--config", str(tmp_path / "stack.yml"), "-o", str(output), "--json"]

    result = CliRunner().invoke(root, arguments)

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["schema"], told["slices"], told["layers"], told["inputs"]) == ("stack/1", 2, 6, 2)
    assert told["file_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    for option in ("--plan", "--as-group", "--fresh"):
        assert CliRunner().invoke(root, [*arguments, option]).exit_code == 2


@pytest.mark.parametrize("scale", ["1.0e+5", f"1{'0' * 400}"])
def test_values_that_do_not_fit_are_told(tmp_path: Path, scale: str) -> None:
    safetensors.numpy.save_file({"layers.0.w": np.array([1, -2, 0], "<f2")}, tmp_path / "a")
    config, output = tmp_path / "stack.yml", tmp_path / "out.safetensors"
    source = f"{{model: {tmp_path / 'a'}, layer_range: [0, 1], parameters: {{scale: {scale}}}}}"
    config.write_text(f"{{merge_method: passthrough, slices: [{{sources: [{source}]}}]}}")

    result = CliRunner().invoke(root, ["merge", "--config", str(config), "-o", str(output), "--json"])

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["warnings"] == [
        "layers.0.w: 2 elements did not fit the output type; the largest that fits was written."
    ]
    assert safetensors.numpy.load_file(output)["layers.0.w"].tolist() == [65504, -65504, 0]


def test_elements_of_eight_bits_are_copied_and_if_they_are_scaled_bfloat16(tmp_path: Path) -> None:
    values = np.array([1, -2, 0.5], ml_dtypes.float8_e4m3fn)
    safetensors.numpy.save_file({"layers.0.w": values, "layers.0.v": values}, tmp_path / "a")
    source = "{model: a, layer_range: [0, 1], parameters: {scale: [{filter: w, value: 0.75}]}}"
    stack = parse_stack(f"{{merge_method: passthrough, slices: [{{sources: [{source}]}}]}}")
    assert stack is not None
    fs, output = SystemFs(), tmp_path / "out"

    write_stack(
        stack,
        Target(output, "", fs, SystemRng()),
        path_of=lambda name: tmp_path / name,
        progress=lambda *_: None,
    )

    found = {
        entry.spec.name: (entry.spec.dtype, [*decode_block(entry.spec.dtype, read_tensor(fs, output, entry))])
        for entry in read_header(fs, output).entries
    }
    assert found == {
        "layers.0.v": ("F8_E4M3", [1, -2, 0.5]),
        "layers.0.w": ("BF16", [0.75, -1.5, 0.375]),
    }
