"""Adapters in a group: contributed, judged, merged and written alike on every node (STRATEGIES 5, 1.12)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.control.model import PolicyChanges
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.lora import merge_adapters
from crdt_merge_protocol.adapters import AdapterHeader
from crdt_merge_protocol.blobs import Manifest
from crdt_merge_protocol.errors import ParameterError
from support.adapters import PREFIX, SHAPES, dense, save_adapter, save_base
from support.whole_nodes import ONE, TIMEOUT_S, Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio
ADAPTERS = {"lora.rank": "auto"}
TWO_MODULES = ("layers.0.q_proj", "layers.0.mlp")


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if "provenance" not in path.name}


def account_in(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "adapter_model.safetensors.provenance.json").read_text())
    return found


async def test_two_nodes_write_the_same_adapter_as_offline_merge_does(tmp_path: Path) -> None:
    first = save_adapter(tmp_path / "a", 1, rank=4)
    second = save_adapter(tmp_path / "b", 2, rank=6, modules=TWO_MODULES, use_rslora=True)
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_base(tmp_path / "base"), params=ADAPTERS)
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        await nodes[0].add("g", first)
        await nodes[1].add("g", second, weight=3 * ONE)
        await until_agreed("g", *nodes, used=2)
        group = await nodes[1].info("g")
        reports = [await nodes[0].resolve("g", tmp_path / "out0")]
        await nodes[1].attested("g", group.resolve_key, nodes[0])
        reports.append(await nodes[1].resolve("g", tmp_path / "out1"))
        again = await nodes[0].resolve("g", tmp_path / "out0")
    merge_adapters([second, first], tmp_path / "offline", weights=[3 * ONE, ONE])

    assert len({report.output_digest for report in (*reports, again)}) == 1
    assert {report.resolve_key for report in reports} == {group.resolve_key}
    assert nodes[0].id.hex() in reports[1].agreeing
    assert files_in(tmp_path / "out0") == files_in(tmp_path / "out1") == files_in(tmp_path / "offline")
    assert again.duration_s == pytest.approx(reports[0].duration_s, abs=1e-3), "it was there, so it was read"
    for module in SHAPES:
        expected = (dense(first, module) + 3 * dense(second, module)) / 4
        assert np.allclose(dense(tmp_path / "out0", module), expected, atol=1e-4), module
    account = account_in(tmp_path / "out0")
    assert account["numerics"]["class"] == "bitwise"
    assert account["adapters"]["ranks"] == {"layers.0.mlp": 10, "layers.0.q_proj": 10, "layers.1.q_proj": 4}
    assert {item["type"] for item in account["facts"]["contributions"]} == {"adapter"}


async def test_order_of_arrival_and_authors_do_not_show(tmp_path: Path) -> None:
    paths = [save_adapter(tmp_path / f"a{seed}", seed, rank=seed) for seed in (2, 3, 5)]
    params = {"lora.rank": "4"}
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    async with Site(tmp_path / "x").nodes(2) as (one, two), Site(tmp_path / "y").nodes(1) as (three,):
        base = save_base(tmp_path / "base")
        await one.create_group("g", base, params=params)
        await three.create_group("g", base, params=params)
        await two.until_group("g", lambda info: info.missing_blobs == 0)
        for node, path in zip((one, two, one), paths, strict=True):
            await node.add("g", path, slot=path.name)
        for path in reversed(paths):
            await three.add("g", path, slot=path.name)
        await until_agreed("g", one, two, used=3)
        reports = [await node.resolve("g", tmp_path / f"out-{i}") for i, node in enumerate((one, three))]

    assert reports[0].output_digest == reports[1].output_digest
    assert reports[0].resolve_key == reports[1].resolve_key
    assert set(account_in(tmp_path / "out-0")["adapters"]["ranks"].values()) == {4}


async def test_what_was_contributed_is_written_out_again_byte_for_byte(tmp_path: Path) -> None:
    head = {"norm.weight": np.full(16, 2, np.float32)}
    path = save_adapter(
        tmp_path / "a", 1, others=head, alpha_pattern={"mlp": 64}, lora_dropout=0.1, modules_to_save=["norm"]
    )
    async with Site(tmp_path).nodes(2) as (one, two):
        await one.create_group("g", save_base(tmp_path / "base"), params=ADAPTERS)
        added = await one.add("g", path)
        await until_agreed("g", one, two, used=1)
        tag = added.contribution.tag
        await two.until_contribution("g", tag, lambda info: info.missing_blobs == 0)
        exact = await last(two.api.contribution_get("g", tag, output_path=str(tmp_path / "exact")))
        await last(two.api.contribution_get("g", tag, output_path=str(tmp_path / "plain"), plain=True))
        once = await two.resolve("g", tmp_path / "out")

    assert exact.is_exact
    assert files_in(tmp_path / "exact") == files_in(path)
    merge_adapters([path], tmp_path / "of-author")
    merge_adapters([tmp_path / "plain"], tmp_path / "of-plain")
    assert files_in(tmp_path / "of-plain") == files_in(tmp_path / "of-author") == files_in(tmp_path / "out")
    assert {item.type for item in once.inputs} == {"adapter"}
    for module in SHAPES:
        scaled = 8 if module.endswith("mlp") else 1
        assert np.allclose(dense(tmp_path / "out", module), scaled * dense(path, module), atol=1e-3)


@pytest.mark.parametrize("strategy", ["ties", "dare", "weight_average"])
async def test_a_base_in_the_policy_makes_a_whole_model(tmp_path: Path, strategy: str) -> None:
    paths = [save_adapter(tmp_path / f"a{seed}", seed) for seed in (1, 2)]
    base = save_base(tmp_path / "base.safetensors")
    params = {"lora.output": "model"} | ({} if strategy == "weight_average" else {"density": "0.5"})
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", base=base, strategy=strategy, params=params)
        for number, path in enumerate(paths):
            await nodes[number].until_group("g", lambda info: info.missing_blobs == 0)
            await nodes[number].add("g", path)
        await until_agreed("g", *nodes, used=2)
        reports = [
            await node.resolve("g", tmp_path / f"out{i}", wait_s=TIMEOUT_S) for i, node in enumerate(nodes)
        ]
    merge_adapters(
        paths,
        tmp_path / "offline",
        strategy=strategy,
        base=base,
        params={k: v for k, v in params.items() if k == "density"},
    )

    found = safetensors.numpy.load_file(tmp_path / "out0")
    assert len({report.output_digest for report in reports}) == 1
    assert (tmp_path / "out0").read_bytes() == (tmp_path / "offline").read_bytes()
    assert (found["norm.weight"] == 1).all()
    if strategy == "weight_average":
        mean = (dense(paths[0], "layers.0.mlp") + dense(paths[1], "layers.0.mlp")) / 2
        before = safetensors.numpy.load_file(base)["layers.0.mlp.weight"]
        assert np.allclose(found["layers.0.mlp.weight"], before + mean, atol=1e-5)


async def test_the_policy_decides_what_is_written_and_changes_the_key(tmp_path: Path) -> None:
    paths = [save_adapter(tmp_path / f"a{seed}", seed) for seed in (1, 2)]
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", save_base(tmp_path / "base"), params=ADAPTERS)
        for path in paths:
            await node.add("g", path, slot=path.name)
        exact = await node.resolve("g", tmp_path / "exact")
        await node.set_policy("g", PolicyChanges(params={"lora.rank": "energy:0.9"}))
        short = await node.resolve("g", tmp_path / "short")
        await node.set_policy("g", PolicyChanges(params={"lora.output": "delta", "lora.rank": ""}))
        await node.set_policy("g", PolicyChanges(strategy="ties", params={"density": "1"}))
        whole = await node.resolve("g", tmp_path / "whole")
        policy = await node.api.policy_show("g")
        with pytest.raises(InvalidRequestError, match="--base"):
            await node.set_policy("g", PolicyChanges(params={"lora.output": "model"}))
        with pytest.raises(ParameterError, match="rank is one of"):
            await node.set_policy("g", PolicyChanges(params={"lora.rank": "several"}))
        with pytest.raises(InvalidRequestError, match="whole models"):
            await node.set_policy("g", PolicyChanges(strategy="fisher_merge"))

    assert len({exact.resolve_key, short.resolve_key, whole.resolve_key}) == 3
    ranks = account_in(tmp_path / "short")["adapters"]["ranks"]
    dropped = account_in(tmp_path / "short")["adapters"]["dropped"]
    assert all(rank < 8 for rank in ranks.values())
    assert all(0 < lost <= 0.1 for lost in dropped.values())
    assert policy.params == {"density": "1", "lora.output": "delta", "lora.rank": "auto"}
    merge_adapters(paths, tmp_path / "offline", strategy="ties", params={"density": "1"})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "offline/delta.safetensors").read_bytes()


async def test_models_and_adapters_do_not_mix(tmp_path: Path) -> None:
    adapter, model = save_adapter(tmp_path / "a", 1), save_base(tmp_path / "base")
    async with Site(tmp_path).nodes(2) as (one, two):
        await one.create_group("adapters", model, params=ADAPTERS)
        await one.create_group("models", model)
        good = await one.add("adapters", adapter)
        with pytest.raises(InvalidRequestError, match="merges whole models"):
            await one.add("models", adapter)
        with pytest.raises(InvalidRequestError, match="merges adapters"):
            await one.add("adapters", model)
        await two.until_group("adapters", lambda info: info.used == 1)
        await two.until_group("models", lambda info: info.missing_blobs == 0)
        plain = Manifest.of(two.put_tensors(safetensors.numpy.load_file(model)))
        strayed = [
            await two.contribute_raw("adapters", plain),
            await two.contribute_raw("models", plain, type="adapter", slot="other"),
        ]
        aside = [
            await one.until_state(name, tag, "quarantined")
            for name, tag in zip(("adapters", "models"), strayed, strict=True)
        ]
        report = await one.resolve("adapters", tmp_path / "out", wait_s=TIMEOUT_S)

    assert [item.reason for item in aside] == [
        "it is a whole model, and the group merges adapters",
        "it is an adapter, and the group merges whole models",
    ]
    assert [item.tag for item in report.inputs] == [good.contribution.tag]


def tensors_of(seed: int, **more: Any) -> dict[str, np.ndarray]:
    """Return the tensors of an adapter of one module with its header; None leaves one out."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {
        "down": rng.standard_normal((2, 16)).astype(np.float32),
        "up": rng.standard_normal((40, 2)).astype(np.float32),
        "header": AdapterHeader(alpha="4", base_model="org/base").encode(),
    } | more
    named = {
        f"{PREFIX}layers.0.mlp.lora_A.weight": found.pop("down"),
        f"{PREFIX}layers.0.mlp.lora_B.weight": found.pop("up"),
    }
    header = found.pop("header")
    if header is not None:
        named["adapter"] = np.frombuffer(header, np.uint8)
    return {name: values for name, values in (named | found).items() if values is not None}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"up": np.full((40, 2), np.nan, np.float32)}, "NaN"),
    ({"up": np.ones((41, 2), np.float32)}, "has shape [41, 16], expected [40, 16]"),
    ({"up": np.ones((40, 3), np.float32)}, "factors of layers.0.mlp are [2, 16] and [40, 3]"),
    ({"up": None}, "has factor A alone"),
    (
        {"down": np.ones((40, 16), np.float32), "up": np.ones((40, 40), np.float32)},
        "over the group's cap 32",
    ),
    (
        {f"{PREFIX}head.weight": np.ones((3, 3), np.float32)},
        "head.weight, which it saves whole, is not in",
    ),
    ({f"{PREFIX}q.lora_magnitude_vector": np.ones(3, np.float32)}, "no factor that is understood"),
    ({f"{PREFIX}layers.0.mlp.lora_A": np.ones((2, 16), np.float32)}, "no name of an adapter's"),
    ({"w": np.ones(3, np.float32)}, "no name of an adapter's"),
    ({"header": None}, "could be the header"),
    ({"header": b"{}"}, "not of format lora/1"),
    ({"header": b"["}, "no JSON object"),
    ({"header": AdapterHeader(alpha="1e9", base_model="org/base").encode()}, "alpha"),
    ({"header": AdapterHeader(alpha="4", base_model="org/other").encode()}, "trained from 'org/other'"),
    ({"header": AdapterHeader(alpha="4", base_model="org/base").encode() + b" "}, "canonical form"),
    ({"header": AdapterHeader(alpha="4", bias="most", base_model="org/base").encode()}, "bias is one of"),
]


async def test_bad_adapters_of_a_peer_are_set_aside_and_stop_nobody(tmp_path: Path) -> None:
    good = save_adapter(tmp_path / "a", 1, modules=("layers.0.mlp",))
    params = ADAPTERS | {"lora.rank_max": "32", "lora.base": "org/base"}
    async with Site(tmp_path).nodes(2) as (one, two):
        await one.create_group("g", save_base(tmp_path / "base"), params=params)
        await one.add("g", good)
        await two.until_group("g", lambda info: info.used == 1)
        tags = [
            await two.contribute_raw(
                "g", Manifest.of(two.put_tensors(tensors_of(3, **more))), slot=f"s{number}", type="adapter"
            )
            for number, (more, _) in enumerate(BAD)
        ]
        aside = [[await node.until_state("g", tag, "quarantined") for tag in tags] for node in (one, two)]
        report = await one.resolve("g", tmp_path / "out", wait_s=TIMEOUT_S)

    for found, (_, reason) in zip(aside[0], BAD, strict=True):
        assert reason in found.reason
    assert [item.reason for item in aside[0]] == [item.reason for item in aside[1]]
    assert {item.tag for item in report.excluded} == set(tags)
    assert np.allclose(dense(tmp_path / "out", "layers.0.mlp"), dense(good, "layers.0.mlp"), atol=1e-4)


async def refused(node: WholeNode, path: Path, match: str) -> None:
    with pytest.raises((ParameterError, InvalidRequestError), match=match):
        await node.add("g", path)


async def test_what_a_group_would_set_aside_is_refused_before_a_byte_is_copied(tmp_path: Path) -> None:
    made: Callable[..., Path] = save_adapter
    bin_only = made(tmp_path / "bin", 1)
    (bin_only / "adapter_model.safetensors").rename(bin_only / "adapter_model.bin")
    async with Site(tmp_path).nodes(1) as (node,):
        like = made(tmp_path / "like", 1, modules=TWO_MODULES)
        await node.create_group("g", like, params={"lora.rank_max": "8"})
        policy = await node.api.policy_show("g")
        await refused(node, made(tmp_path / "dora", 1, use_dora=True), "use_dora")
        await refused(node, made(tmp_path / "big", 1, rank=9), "rank of")
        await refused(node, made(tmp_path / "more", 1), r"layers\.1\.q_proj")
        await refused(
            node, made(tmp_path / "of", 1, modules=TWO_MODULES, base_model_name_or_path="x"), "trained"
        )
        await refused(node, bin_only, "safe_serialization|can hold programs")
        blobs = list(node.services.store.blobs.digests())
        with pytest.raises(InvalidRequestError, match="a base is a whole model"):
            await node.set_policy("g", PolicyChanges(base_path=str(like)))
        await node.create_group("models", save_model(tmp_path / "m", 1.0))
        with pytest.raises(InvalidRequestError, match="fixed for life"):
            await node.set_policy("models", PolicyChanges(params={"lora.rank": "4"}))

    assert blobs == []
    assert policy.params["lora.base"] == "org/base"
