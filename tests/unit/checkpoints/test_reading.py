"""One file, or a directory of shards: what is read, and what is refused with a reason (SCENARIOS T22)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_protocol.errors import MalformedCheckpointError, MalformedTensorFileError
from safetensors.numpy import save_file
from support.checkpoints import INDEX, save_sharded, some_tensors

FIRST = "model-00001-of-00002.safetensors"


def read(path: Path):
    return read_checkpoint(SystemFs(), path)


def index_of(directory: Path) -> dict:
    return json.loads((directory / INDEX).read_text())


def write_index(directory: Path, document: object) -> None:
    (directory / INDEX).write_text(json.dumps(document))


def refusal(directory: Path) -> str:
    with pytest.raises(MalformedCheckpointError) as caught:
        read(directory)
    return caught.value.message


def test_the_same_tensors_are_the_same_content_however_they_are_sharded(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_file(tensors, tmp_path / "one.safetensors")
    (tmp_path / "alone").mkdir()
    save_file(tensors, tmp_path / "alone" / "model.safetensors", metadata={"format": "pt"})
    two, three = (save_sharded(tmp_path / f"in-{count}", tensors, count) for count in (2, 3))

    paths = (tmp_path / "one.safetensors", tmp_path / "alone", two, three)
    described = [describe_file(path) for path in paths]

    assert len({each.manifest.content for each in described}) == 1
    assert len({each.digest for each in described}) == 1


def test_entries_come_in_one_order_and_say_which_file_they_are_in(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())

    found = read(directory)

    assert [entry.spec.name for entry in found.entries] == sorted(some_tensors())
    assert {entry.spec.name: entry.path.name for entry in found.entries} == index_of(directory)["weight_map"]
    assert [path.name for path in found.files] == [FIRST, "model-00002-of-00002.safetensors"]


def test_links_as_in_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    save_sharded(tmp_path / "blobs", some_tensors())
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    (tmp_path / "link").symlink_to(tmp_path / "snapshot")
    (tmp_path / "file").symlink_to(tmp_path / "blobs" / FIRST)

    assert read(tmp_path / "link").packing == read(tmp_path / "blobs").packing
    assert read(tmp_path / "file").nbytes > 0


def test_configuration_beside_the_shards_is_let_alone(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    (directory / "config.json").write_text("{}")
    save_file({"lora": np.ones(1, np.float32)}, directory / "adapter.safetensors")

    assert len(read(directory).entries) == len(some_tensors())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    (directory / FIRST).unlink()

    assert f"{FIRST}, which the index names, is not there" in refusal(directory)


def test_a_shard_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    save_file({"more": np.ones(1, np.float32)}, directory / "model-00003-of-00003.safetensors")

    assert "model-00003-of-00003.safetensors is there, and the index does not name it" in refusal(directory)


def test_a_whole_model_beside_shards_leaves_open_which_is_meant(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    save_file(some_tensors(), directory / "model.safetensors")

    assert "model.safetensors is there" in refusal(directory)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})
    both = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}
    save_file(both, directory / FIRST)

    assert "is in two files" in refusal(directory)


def test_the_index_has_to_say_what_the_shards_hold(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    document = index_of(directory)
    swapped = {
        name: "model-00002-of-00002.safetensors" if file == FIRST else FIRST
        for name, file in document["weight_map"].items()
    }
    write_index(directory, {"weight_map": swapped})
    assert "the index says" in refusal(directory)

    write_index(directory, {"weight_map": document["weight_map"] | {"ghost": FIRST}})
    assert "does not hold tensor ghost" in refusal(directory)

    del document["weight_map"]["bias"]
    write_index(directory, document)
    assert "tensor bias" in refusal(directory)
    assert "is not in the index" in refusal(directory)


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        ".hidden.safetensors",
        "..safetensors/../x.safetensors",
        "model.bin",
        "a\x00b.safetensors",
        "",
        7,
        None,
    ],
)
def test_an_index_cannot_lead_out_of_its_directory(tmp_path: Path, file: object) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    document = index_of(directory)
    document["weight_map"]["bias"] = file
    write_index(directory, document)

    assert "which is no file beside the index" in refusal(directory)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {}}', "0 tensors"),
        ('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "twice"),
        ('{"weight_map": {"a\\u0000": "b.safetensors"}}', "not a tensor name"),
        ('{"weight_map": {' + "," * 60_000 + "}}", "could need"),
        (" " * ((8 << 20) + 1), "bytes, at most"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    (directory / INDEX).write_text(text)

    assert reason in refusal(directory)


def test_an_index_that_is_no_text_is_refused(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    (directory / INDEX).write_bytes(b"\xff\xfe")

    assert "UTF-8" in refusal(directory)


def test_a_directory_without_an_index_holds_one_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no safetensors file" in refusal(empty)

    several = tmp_path / "several"
    several.mkdir()
    for name in ("a", "b"):
        save_file(some_tensors(), several / f"{name}.safetensors")
    assert "several safetensors files" in refusal(several)

    shards = save_sharded(tmp_path / "shards", some_tensors())
    (shards / INDEX).unlink()
    assert "shards and no model.safetensors.index.json" in refusal(shards)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    data = (directory / FIRST).read_bytes()
    (directory / FIRST).write_bytes(data[:-1])

    with pytest.raises(MalformedTensorFileError, match=FIRST):
        read(directory)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        read(tmp_path / "absent")


def test_a_copy_of_a_file_that_was_changed_meanwhile_is_told_from_it(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "m", some_tensors())
    found = read(directory)
    first = directory / FIRST
    data = first.read_bytes()
    for name, copy in {"same": data, "longer": data + b"x", "other": data[:8] + b"{ " + data[10:]}.items():
        (tmp_path / name).write_bytes(copy)

    fs = SystemFs()
    assert found.is_still(fs, first, tmp_path / "same")
    assert not found.is_still(fs, first, tmp_path / "longer")
    assert not found.is_still(fs, first, tmp_path / "other")
