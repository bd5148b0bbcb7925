"""Adapters are merged as differences: against dense numpy, whatever their ranks, scales and modules."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.lora import expand_adapter, merge_adapters, read_adapter
from crdt_merge_node.lora.factors import reduce, target_rank
from crdt_merge_node.ports import SystemFs
from crdt_merge_protocol.errors import EmptySetError, ParameterError, ShapeMismatchError
from crdt_merge_protocol.limits import WEIGHT_ONE
from support.adapters import PREFIX, SHAPES, dense, save_adapter, save_base
from support.checkpoints import save_sharded


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [
        save_adapter(tmp_path / "a", 1, rank=4),
        save_adapter(tmp_path / "b", 2, rank=6, modules=("layers.0.q_proj", "layers.0.mlp"), use_rslora=True),
    ]


def test_a_mean_of_adapters_is_the_mean_of_their_differences(pair: list[Path], tmp_path: Path) -> None:
    result = merge_adapters(pair, tmp_path / "out", weights=[WEIGHT_ONE, 3 * WEIGHT_ONE])

    for module in SHAPES:
        expected = 0.25 * dense(pair[0], module) + 0.75 * dense(pair[1], module)
        assert np.allclose(dense(tmp_path / "out", module), expected, atol=1e-4), module
    assert result.ranks == {"layers.0.mlp": 10, "layers.0.q_proj": 10, "layers.1.q_proj": 4}
    assert set(result.dropped.values()) == {0.0}


def test_averaging_the_factors_apart_would_be_something_else(pair: list[Path], tmp_path: Path) -> None:
    twin = [pair[0], save_adapter(tmp_path / "c", 3, rank=4)]
    merge_adapters(twin, tmp_path / "out")
    module = "layers.0.mlp"
    down, up = (
        np.mean(
            [
                safetensors.numpy.load_file(p / "adapter_model.safetensors")[
                    f"{PREFIX}{module}.lora_{side}.weight"
                ]
                for p in twin
            ],
            axis=0,
        )
        for side in "AB"
    )
    assert not np.allclose(dense(tmp_path / "out", module), 2 * up @ down, atol=0.1)


def test_a_lower_rank_is_the_best_one_and_says_what_it_lost(pair: list[Path], tmp_path: Path) -> None:
    result = merge_adapters(pair, tmp_path / "out", strategy="task_arithmetic", rank="3")

    for module in SHAPES:
        expected = dense(pair[0], module) + dense(pair[1], module)
        u, s, vt = np.linalg.svd(expected)
        best = (u[:, :3] * s[:3]) @ vt[:3]
        assert np.allclose(dense(tmp_path / "out", module), best, atol=1e-4)
        assert result.dropped[module] == pytest.approx((s[3:] ** 2).sum() / (s**2).sum(), rel=1e-6)


def test_the_order_of_adapters_does_not_show(pair: list[Path], tmp_path: Path) -> None:
    for name, paths in (("x", pair), ("y", pair[::-1])):
        merge_adapters(paths, tmp_path / name, rank="max")
    assert (tmp_path / "x/adapter_model.safetensors").read_bytes() == (
        tmp_path / "y/adapter_model.safetensors"
    ).read_bytes()
    assert (tmp_path / "x/adapter_config.json").read_bytes() == (
        tmp_path / "y/adapter_config.json"
    ).read_bytes()


def test_the_same_adapter_twice_is_one(pair: list[Path], tmp_path: Path) -> None:
    merge_adapters([pair[0], pair[0]], tmp_path / "out", strategy="task_arithmetic")
    assert np.allclose(dense(tmp_path / "out", "layers.0.mlp"), dense(pair[0], "layers.0.mlp"), atol=1e-4)


def test_ties_elects_among_whole_differences(pair: list[Path], tmp_path: Path) -> None:
    result = merge_adapters(pair, tmp_path / "out", strategy="ties", params={"density": "1"})
    merged = safetensors.numpy.load_file(tmp_path / "out/delta.safetensors")

    module = "layers.0.mlp"
    taus = np.array([dense(path, module).astype(np.float32) for path in pair]).astype(float)
    sign = np.sign(taus.sum(0))
    agree = taus * sign > 0
    expected = (taus * agree).sum(0) / agree.sum(0)
    assert np.allclose(merged[f"{module}.weight"], expected, atol=1e-5)
    assert np.allclose(merged["layers.1.q_proj.weight"], dense(pair[0], "layers.1.q_proj"), atol=1e-5), (
        "an adapter that does not change a module does not vote on it"
    )
    assert "--rank" in result.warnings[-1]


def test_a_strategy_on_elements_can_be_cut_to_a_rank(pair: list[Path], tmp_path: Path) -> None:
    result = merge_adapters(pair, tmp_path / "out", strategy="ties", params={"density": "1"}, rank="5")

    assert set(result.ranks.values()) == {5}
    assert all(0 < lost < 1 for module, lost in result.dropped.items() if module != "layers.1.q_proj")


def test_a_base_makes_a_whole_model(pair: list[Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    base = {f"{m}.weight": rng.standard_normal(s).astype(np.float32) for m, s in SHAPES.items()}
    base["norm.weight"] = np.ones(16, np.float32)
    safetensors.numpy.save_file(base, tmp_path / "base.safetensors")
    for strategy in ("weight_average", "ties"):
        params = {"density": "1"} if strategy == "ties" else {}
        merge_adapters(
            pair,
            tmp_path / f"{strategy}.safetensors",
            strategy=strategy,
            params=params,
            base=tmp_path / "base.safetensors",
        )
    mean = safetensors.numpy.load_file(tmp_path / "weight_average.safetensors")
    module = "layers.0.q_proj"
    expected = base[f"{module}.weight"] + (dense(pair[0], module) + dense(pair[1], module)) / 2
    assert np.allclose(mean[f"{module}.weight"], expected, atol=1e-5)
    assert (mean["norm.weight"] == base["norm.weight"]).all()
    ties = safetensors.numpy.load_file(tmp_path / "ties.safetensors")
    assert not np.allclose(ties[f"{module}.weight"], mean[f"{module}.weight"])


def test_a_base_may_be_a_directory_of_shards(pair: list[Path], tmp_path: Path) -> None:
    single = save_base(tmp_path / "base.safetensors")
    shards = save_sharded(tmp_path / "shards", safetensors.numpy.load_file(single))
    for name, base in (("of-single", single), ("of-shards", shards)):
        merge_adapters(pair, tmp_path / name, base=base)
    assert (tmp_path / "of-shards").read_bytes() == (tmp_path / "of-single").read_bytes()


def test_an_untrained_adapter_has_a_difference_of_zero_at_every_rank(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", 1)
    tensors = safetensors.numpy.load_file(path / "adapter_model.safetensors")
    fresh = {name: 0 * values if "lora_B" in name else values for name, values in tensors.items()}
    safetensors.numpy.save_file(fresh, path / "adapter_model.safetensors")
    for rank in ("auto", "2", "energy:0.5"):
        merge_adapters([path], tmp_path / rank, rank=rank)
        assert not dense(tmp_path / rank, "layers.0.mlp").any()


def test_layers_saved_input_first_merge_with_those_saved_output_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    square = {"down": rng.standard_normal((2, 8)), "up": rng.standard_normal((8, 2))}
    differences = []
    for name, fan_in_fan_out in (("x", True), ("y", False)):
        (tmp_path / name).mkdir()
        down, up = (rng.permutation(square[side]).astype(np.float32) for side in ("down", "up"))
        tensors = {f"{PREFIX}m.lora_A.weight": down, f"{PREFIX}m.lora_B.weight": up}
        safetensors.numpy.save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": fan_in_fan_out}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        product = up.astype(float) @ down.astype(float)
        differences.append(product.T if fan_in_fan_out else product)
    merge_adapters([tmp_path / "x", tmp_path / "y"], tmp_path / "out", strategy="task_arithmetic")
    expand_adapter(tmp_path / "out", tmp_path / "d.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "d.safetensors")["m.weight"]
    assert np.allclose(found, differences[0] + differences[1], atol=1e-5)


def test_an_adapter_expands_to_its_difference(pair: list[Path], tmp_path: Path) -> None:
    expand_adapter(pair[1], tmp_path / "delta.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "delta.safetensors")

    assert set(found) == {"layers.0.q_proj.weight", "layers.0.mlp.weight"}
    assert np.allclose(found["layers.0.mlp.weight"], dense(pair[1], "layers.0.mlp"), atol=1e-5)


def test_embeddings_and_layers_saved_input_first_are_transposed(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.mkdir()
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((2, 30)), rng.standard_normal((8, 2))
    safetensors.numpy.save_file(
        {
            f"{PREFIX}embed.lora_embedding_A": down.astype(np.float32),
            f"{PREFIX}embed.lora_embedding_B": up.astype(np.float32),
        },
        path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "x"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    expand_adapter(path, tmp_path / "d.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "d.safetensors")["embed.weight"]

    assert found.shape == (30, 8)
    assert np.allclose(found, (up @ down).T, atol=1e-5)
    merge_adapters([path], tmp_path / "again", rank="sum")
    expand_adapter(tmp_path / "again", tmp_path / "d2.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "d2.safetensors")["embed.weight"]
    assert np.allclose(again, found, atol=1e-5)


def test_patterns_of_rank_and_alpha_are_read_and_written(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", 1, alpha_pattern={"layers.0.mlp": 64})
    adapter = read_adapter(path, SystemFs())

    assert adapter.scale("layers.0.mlp") == 16
    assert adapter.scale("layers.0.q_proj") == 2
    other = save_adapter(tmp_path / "b", 2, modules=("layers.0.mlp",))
    merge_adapters([path, other], tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {"layers.0.mlp": 8}
    assert config["r"] == config["lora_alpha"] == 4


def test_tensors_saved_whole_are_averaged_among_those_that_have_them(tmp_path: Path) -> None:
    head = np.ones((3, 2), np.float32)
    paths = [
        save_adapter(tmp_path / "a", 1, others={"score.weight": head}),
        save_adapter(tmp_path / "b", 2, others={"score.weight": 4 * head}),
        save_adapter(tmp_path / "c", 3),
    ]
    merge_adapters(paths, tmp_path / "out", weights=[2 * WEIGHT_ONE, WEIGHT_ONE, WEIGHT_ONE])
    found = safetensors.numpy.load_file(tmp_path / "out/adapter_model.safetensors")
    assert np.allclose(found[f"{PREFIX}score.weight"], 2 * head)


def test_what_cannot_be_merged_is_refused_by_name(pair: list[Path], tmp_path: Path) -> None:
    with pytest.raises(EmptySetError):
        merge_adapters([], tmp_path / "out")
    stranger = save_adapter(tmp_path / "s", 1, base_model_name_or_path="org/other")
    with pytest.raises(ParameterError, match="different bases"):
        merge_adapters([*pair, stranger], tmp_path / "out")
    dora = save_adapter(tmp_path / "d", 1, use_dora=True)
    with pytest.raises(ParameterError, match="use_dora"):
        merge_adapters([dora], tmp_path / "out")
    prompt = save_adapter(tmp_path / "p", 1, peft_type="PROMPT_TUNING")
    with pytest.raises(ParameterError, match="peft_type"):
        merge_adapters([prompt], tmp_path / "out")
    with pytest.raises(ParameterError, match="rank is one of"):
        merge_adapters(pair, tmp_path / "out", rank="several")
    assert not (tmp_path / "out").exists()


def test_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", 1)
    tensors = safetensors.numpy.load_file(path / "adapter_model.safetensors")
    name = f"{PREFIX}layers.0.mlp.lora_B.weight"
    safetensors.numpy.save_file(
        {**tensors, name: np.zeros((40, 3), np.float32)}, path / "adapter_model.safetensors"
    )
    with pytest.raises(ShapeMismatchError, match=r"layers\.0\.mlp"):
        merge_adapters([path], tmp_path / "out")


def test_rules_of_rank() -> None:
    assert [target_rank(rule, [4, 8]) for rule in ("auto", "sum", "max", "min", "mean", "5")] == [
        12,
        12,
        8,
        4,
        6,
        5,
    ]
    assert target_rank("auto", [200, 100]) == 200
    assert target_rank("energy:0.9", [4]) == Fraction(9, 10)


def test_energy_keeps_the_least_rank_that_reaches_it() -> None:
    up, down = np.diag([4.0, 2.0, 1.0]), np.eye(3)
    kept = reduce(up, down, Fraction(9, 10))
    assert kept.up.shape[1] == 2
    assert kept.dropped == pytest.approx(1 / 21)


def test_many_adapters_are_cut_like_the_few_whose_factors_fit(tmp_path: Path) -> None:
    paths = [save_adapter(tmp_path / f"a{seed}", seed, rank=3) for seed in range(8)]
    result = merge_adapters(paths, tmp_path / "out", rank="4")

    for module in SHAPES:
        expected = sum(dense(path, module) for path in paths) / 8
        u, s, vt = np.linalg.svd(expected)
        assert np.allclose(dense(tmp_path / "out", module), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-4)
        assert result.dropped[module] == pytest.approx((s[4:] ** 2).sum() / (s**2).sum(), rel=1e-6)


def test_a_sum_beyond_what_is_exact_is_cut_by_lapack_to_the_same_difference() -> None:
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((600, 520)), rng.standard_normal((520, 530))
    found = reduce(up, down, 6)
    u, s, vt = np.linalg.svd(up @ down)
    assert np.allclose(found.up @ found.down, (u[:, :6] * s[:6]) @ vt[:6])


def test_biases_are_written_where_peft_looks_for_them(tmp_path: Path) -> None:
    bias = np.ones(40, np.float32)
    paths = [
        save_adapter(tmp_path / "a", 1, bias="all", others={"layers.0.mlp.base_layer.bias": bias}),
        save_adapter(tmp_path / "b", 2, modules=("layers.0.q_proj",), others={"layers.0.mlp.bias": 3 * bias}),
    ]
    merge_adapters(paths, tmp_path / "out")
    found = safetensors.numpy.load_file(tmp_path / "out/adapter_model.safetensors")
    assert (found[f"{PREFIX}layers.0.mlp.base_layer.bias"] == 2).all()
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["bias"] == "all"
