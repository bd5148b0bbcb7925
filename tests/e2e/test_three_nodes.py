"""Three daemons build one model together, through the commands that a person would type."""

import json
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.local_cluster import Member
from safetensors.numpy import save_file
from support.adapters import SHAPES, save_adapter
from support.daemons import Harness, ask, cli, save_model


def test_what_one_node_contributes_all_nodes_merge_to_the_same_bytes(harness: Harness) -> None:
    first, *_ = harness.members
    base = save_model(harness.files / "base.safetensors", 0)
    ask(first, "group", "create", "trio", "--base", str(base), "--strategy", "ties", "--param", "density=0.5")
    harness.until_groups("trio", lambda info: info.missing_blobs == 0)
    for number, member in enumerate(harness.members, start=1):
        path = save_model(harness.files / f"model-{number}.safetensors", number)
        added = ask(member, "contribution", "add", "trio", str(path), "--weight", str(number))
        assert added["contribution"]["state"] == "used"
    harness.until_agreed("trio", used=3)

    files = []
    for member in harness.members:
        output = harness.files / f"{member.name}-trio.safetensors"
        report = ask(member, "resolve", "trio", "-o", str(output))
        assert report["file_sha256"]
        files.append(output.read_bytes())

    assert len(set(files)) == 1


def test_merge_offline_writes_the_bytes_of_the_resolve(harness: Harness) -> None:
    """The same engine, policy and contributions, hence the same seed and the same file."""
    output = harness.files / "offline.safetensors"
    models = [str(harness.files / f"model-{number}.safetensors") for number in (3, 1, 2)]
    cli(
        harness.members[0],
        *("merge", *models, "-o", str(output), "--strategy", "ties", "--param", "density=0.5"),
        *("--base", str(harness.files / "base.safetensors"), "--weight", "3,1,2"),
    )

    resolved = harness.files / f"{harness.members[1].name}-trio.safetensors"
    assert resolved.read_bytes() == output.read_bytes()
    provenance = [json.loads(Path(f"{path}.provenance.json").read_text()) for path in (resolved, output)]
    assert provenance[0]["output_digest"] == provenance[1]["output_digest"]
    assert provenance[0]["resolve_key"] == provenance[1]["resolve_key"]


def test_a_random_strategy_draws_the_same_masks_offline_and_in_the_group(harness: Harness) -> None:
    first = harness.members[0]
    base = str(harness.files / "base.safetensors")
    ask(first, "group", "create", "masks", "--base", base, "--strategy", "dare_ties")
    models = [str(harness.files / f"model-{number}.safetensors") for number in (1, 2)]
    for slot, model in enumerate(models):
        ask(first, "contribution", "add", "masks", model, "--slot", f"s{slot}")
    harness.until_agreed("masks", used=2)
    resolved, merged = harness.files / "masks.safetensors", harness.files / "masks-offline.safetensors"
    ask(harness.members[2], "resolve", "masks", "-o", str(resolved))
    cli(first, "merge", *models, "-o", str(merged), "--strategy", "dare_ties", "--base", base)

    assert merged.read_bytes() == resolved.read_bytes()


def test_a_remove_on_one_node_takes_effect_on_all(harness: Harness) -> None:
    """SCENARIOS S4: across the wire, at the origin, and in the output."""
    second = harness.members[1]
    ask(second, "contribution", "remove", "trio", "main", "--yes")
    harness.until_agreed("trio", used=2)
    outputs = set()
    for member in harness.members:
        output = harness.files / f"{member.name}-after.safetensors"
        ask(member, "resolve", "trio", "-o", str(output))
        outputs.add(output.read_bytes())
    control = harness.files / "control.safetensors"
    models = [str(harness.files / f"model-{number}.safetensors") for number in (1, 3)]
    cli(
        second,
        *("merge", *models, "-o", str(control), "--strategy", "ties", "--param", "density=0.5"),
        *("--base", str(harness.files / "base.safetensors"), "--weight", "1,3"),
    )

    assert outputs == {control.read_bytes()}


def test_a_restart_keeps_everything(harness: Harness) -> None:
    third = harness.members[2]
    before = ask(third, "group", "show", "trio")
    harness.run(third.stop())
    cli(third, "status", status=3)
    harness.run(third.start())
    harness.run(harness.cluster.connected())

    after = ask(third, "group", "show", "trio")

    assert after["contributions"] == before["contributions"]
    assert after["info"]["sync_root"] == before["info"]["sync_root"]
    assert after["info"]["resolve_key"] == before["info"]["resolve_key"]
    assert after["policy"] == before["policy"]


def test_a_blocked_peer_catches_up_after_unblock(harness: Harness) -> None:
    first, second, third = harness.members
    for one, other in ((first, third), (third, first), (second, third), (third, second)):
        ask(one, "peer", "block", other.id[:16])
    harness.until(lambda: _is_alone(third), "the third node to be alone")
    path = save_model(harness.files / "late.safetensors", 77)
    added = ask(first, "contribution", "add", "trio", str(path), "--slot", "late")
    tag = added["contribution"]["tag"]
    cli(third, "contribution", "show", "trio", tag, status=4)
    reasons = cli(third, "why", "trio").stdout

    assert "unblock" in reasons

    for one, other in ((first, third), (third, first), (second, third), (third, second)):
        ask(one, "peer", "unblock", other.id[:16])
    harness.until_agreed("trio", used=3)
    shown = ask(third, "contribution", "show", "trio", tag)
    assert shown["contribution"]["state"] == "used"


def test_a_wrong_shape_is_refused_before_a_byte_is_copied(harness: Harness) -> None:
    first = harness.members[0]
    path = save_model(harness.files / "wide.safetensors", 5, elements=1200)
    before = ask(first, "status")["store_bytes"]
    refused = cli(first, "contribution", "add", "trio", str(path), status=1)

    assert "E1302" in refused.stderr
    assert "layer.weight" in refused.stderr
    assert ask(first, "status")["store_bytes"] == before


def test_a_policy_change_reaches_all_nodes_and_changes_the_resolve_key(harness: Harness) -> None:
    first = harness.members[0]
    key = harness.group_infos("trio")[0].resolve_key
    changed = ask(first, "policy", "set", "trio", "--strategy", "weight_average")
    assert changed["policy"]["strategy"] == "weight_average"
    harness.until_groups("trio", lambda info: info.strategy == "weight_average")
    harness.until_agreed("trio", used=3)

    assert harness.group_infos("trio")[0].resolve_key != key


def test_only_an_administrator_changes_the_policy(harness: Harness) -> None:
    refused = cli(harness.members[1], "policy", "set", "trio", "--strategy", "ties", status=5)

    assert "administrator" in refused.stderr


@pytest.mark.parametrize("arguments", [("group", "show", "nobody"), ("peer", "block", "0000000000000000")])
def test_what_does_not_exist_is_an_error_and_never_a_fallback(
    harness: Harness, arguments: tuple[str, ...]
) -> None:
    cli(harness.members[0], *arguments, status=4)


async def _is_alone(member: Member) -> bool:
    return {peer.state for peer in await member.client.peer_list()} == {"blocked"}


def test_adapters_of_different_ranks_and_modules_become_one_on_every_daemon(harness: Harness) -> None:
    first, second, third = harness.members
    modules = list(SHAPES)
    adapters = [
        save_adapter(harness.files / "a", 1, rank=2),
        save_adapter(harness.files / "b", 2, rank=3, modules=tuple(modules[:2]), use_rslora=True),
        save_adapter(harness.files / "c", 3, rank=5, modules=tuple(modules[1:]), alpha_pattern={"mlp": 1}),
    ]
    cli(first, "group", "create", "tuned", "--like", str(adapters[0]), "--rank", "4", "--max-rank", "8")
    harness.until_groups("tuned", lambda info: info.missing_blobs == 0)
    for member, path in zip(harness.members, adapters, strict=True):
        cli(member, "contribution", "add", "tuned", str(path))
    harness.until_agreed("tuned", used=3)

    reports = [
        ask(member, "resolve", "tuned", "-o", str(harness.files / f"tuned-{member.name}"))
        for member in (first, third)
    ]
    offline = harness.files / "tuned-offline"
    cli(second, "lora", "merge", *map(str, reversed(adapters)), "-o", str(offline), "--rank", "4")
    cli(second, "resolve", "tuned", "--verify", str(offline))

    assert len({report["output_digest"] for report in reports}) == 1
    assert {item["type"] for item in reports[0]["inputs"]} == {"adapter"}
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        written = {(harness.files / f"tuned-{member.name}" / name).read_bytes() for member in (first, third)}
        assert written == {(offline / name).read_bytes()}
    config = json.loads((offline / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert config["target_modules"] == sorted(modules)


MARK = b"TO-BE-ERASED-01!"


def save_matrix(path: Path, matrix: np.ndarray) -> str:
    """Write a model of one matrix; return its path."""
    save_file({"layer.weight": matrix}, path)
    return str(path)


def marked(harness: Harness) -> list[str]:
    """Return the files of all data directories that hold the mark."""
    files = [path for member in harness.members for path in member.data_dir.rglob("*") if path.is_file()]
    return [str(path) for path in files if MARK in path.read_bytes()]


def test_what_two_administrators_erase_is_on_no_node(harness: Harness) -> None:
    first, second, third = harness.members
    doomed = save_matrix(
        harness.files / "doomed.safetensors", np.frombuffer(MARK * 40_000, np.float32).reshape(-1, 4)
    )
    other = save_matrix(harness.files / "other.safetensors", np.ones((40_000, 4), np.float32))
    create = ("group", "create", "agreed", "--like", doomed, "--admin", second.name, "--quorum", "2")
    assert "2 of 2 administrators decide" in cli(first, *create).stderr
    harness.until_groups("agreed", lambda info: info.missing_blobs == 0)
    tag = ask(third, "contribution", "add", "agreed", doomed, "--meta", "of=somebody")["contribution"]["tag"]
    ask(second, "contribution", "add", "agreed", other)
    harness.until_agreed("agreed", used=2)
    assert len({path.split("/ops.db")[0].split("/blobs")[0] for path in marked(harness)}) == 3

    path = str(harness.files / "erase.act")
    erase = ("contribution", "erase", "agreed", tag, "--reason", "consent withdrawn")
    assert "E1711" in cli(third, *erase, "--yes", status=5).stderr
    assert "E1712" in cli(first, *erase, "--yes", status=5).stderr
    cli(first, *erase, "--act", path)
    assert "1 of 2" in cli(third, "act", "show", path).stdout
    assert "E1712" in cli(third, "act", "submit", path, status=5).stderr
    cli(second, "act", "sign", path, "--yes")
    act = ask(third, "act", "submit", path)["act"]
    harness.until_agreed("agreed", used=1)

    def is_complete() -> bool:
        return bool(ask(first, "group", "erasures", "agreed")["erasures"][0]["is_complete"])

    async def complete() -> bool:
        return is_complete()

    harness.until(complete, "all nodes have signed that the bytes are gone")
    assert marked(harness) == []
    shown = ask(third, "contribution", "show", "agreed", tag)["contribution"]
    assert shown["reason"] == f"erased: consent withdrawn (act {act['operation'][:12]})"
    assert "consent withdrawn" in cli(third, "contribution", "add", "agreed", doomed, status=5).stderr
    assert "consent withdrawn" in cli(second, "group", "show", "agreed").stdout
