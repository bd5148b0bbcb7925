"""Checkpoints on the command line: sizes of shards, where outputs go, what an interrupt leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from crdt_merge_node.cli.values import SHARD_BYTES, ByteSize, shard_bytes_of
from crdt_merge_node.control.model import ContributionAdded, Progress
from safetensors.numpy import load_file, save_file
from support.checkpoints import save_sharded, some_tensors
from support.nodes import OWN, FakeNode

KIB = 1024


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("512MiB", 512 * KIB**2),
        ("1.5 GiB", 3 * KIB**3 // 2),
        ("100", 100),
        ("7kb", 7_000),
        ("2T", 2 * 10**12),
        ("3B", 3),
    ],
)
def test_a_size_is_what_its_unit_says(text: str, nbytes: int) -> None:
    assert ByteSize().convert(text, None, None) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1GB", "GB", "1e3", "5 parsecs", "9" * 30, "99999999TB", "0.1B"])
def test_what_is_no_size_is_bad_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        ByteSize().convert(text, None, None)


def test_an_output_is_a_directory_if_it_looks_like_one(tmp_path: Path) -> None:
    assert shard_bytes_of(str(tmp_path / "out.safetensors"), None) == 0
    assert shard_bytes_of(f"{tmp_path}/out/", None) == SHARD_BYTES
    assert shard_bytes_of(str(tmp_path), None) == SHARD_BYTES
    assert shard_bytes_of(str(tmp_path / "out"), 7) == 7


def test_resolve_passes_the_size_of_shards_on(run: Any, node: FakeNode, tmp_path: Path) -> None:
    assert run("resolve", "digits", "-o", str(tmp_path / "out"), "--shard-size", "2MB").exit_code == 0
    assert node.last("resolve")["shard_bytes"] == 2_000_000
    assert run("resolve", "digits", "-o", str(tmp_path / "out")).exit_code == 0
    assert node.last("resolve")["shard_bytes"] == 0


def test_a_contribution_is_written_out_and_its_files_named(run: Any, node: FakeNode, tmp_path: Path) -> None:
    result = run("contribution", "get", "digits", "main", "-o", str(tmp_path / "out"))

    assert result.exit_code == 0, result.stderr
    assert "byte for byte as its author had it" in result.stdout
    assert "model.safetensors" in result.stdout
    assert node.last("contribution_get") == {
        "group": "digits",
        "contribution": "main",
        "output_path": str(tmp_path / "out"),
        "plain": False,
    }
    plain = run("contribution", "get", "digits", "main", "-o", "x", "--plain").stdout
    assert "the same tensors in a plain file" in plain


def test_a_directory_is_added_and_the_way_its_bytes_get_in_is_said(
    run: Any, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_sharded(tmp_path / "model", some_tensors())

    async def add(_self: object, _group: str, **kwargs: Any) -> AsyncIterator[ContributionAdded]:
        assert kwargs["link"]
        yield ContributionAdded(contribution=OWN, copied_bytes=1024, placed_bytes=2048, duration_s=0.5)

    monkeypatch.setattr(FakeNode, "contribution_add", add)
    result = run("contribution", "add", "digits", str(directory), "--link")

    assert result.exit_code == 0, result.stderr
    assert "2.0 KiB kept without a copy, 1.0 KiB copied" in result.stdout


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("contribution_add", ("contribution", "add", "digits", __file__), "keeps nothing of it"),
        ("contribution_get", ("contribution", "get", "digits", "main", "-o", "out"), "out is as it was"),
        ("resolve", ("resolve", "digits", "-o", "out"), "out is as it was"),
    ],
)
def test_whoever_interrupts_long_work_is_told_what_is_left_of_it(
    run: Any, monkeypatch: pytest.MonkeyPatch, method: str, arguments: tuple[str, ...], words: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> Iterator[Progress]:
        yield Progress(step="working")
        raise KeyboardInterrupt

    monkeypatch.setattr(f"crdt_merge_node.control.client.Client.{method}", interrupt)
    result = run(*arguments)

    assert result.exit_code == 130
    assert words in result.stderr
    assert "interrupted" in result.stderr


def test_merge_reads_shards_and_writes_shards(run: Any, tmp_path: Path) -> None:
    first = save_sharded(tmp_path / "first", some_tensors(1), 2)
    save_file(some_tensors(2), tmp_path / "second.safetensors")
    inputs = (str(first), str(tmp_path / "second.safetensors"))

    whole = run("merge", *inputs, "-o", str(tmp_path / "whole.safetensors"), "--json")
    shards = run("merge", *inputs, "-o", str(tmp_path / "shards"), "--shard-size", "80100", "--json")
    again = run("merge", *inputs, "--verify", str(tmp_path / "shards"))

    digests = {json.loads(each.stdout.splitlines()[-1])["output_digest"] for each in (whole, shards)}
    assert len(digests) == 1
    assert again.exit_code == 0, again.stdout
    found: dict[str, bytes] = {}
    for path in (tmp_path / "shards").glob("model-*"):
        found |= {name: array.tobytes() for name, array in load_file(path).items()}
    expected = load_file(tmp_path / "whole.safetensors")
    assert found == {name: array.tobytes() for name, array in expected.items()}
