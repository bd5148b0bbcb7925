"""``merge --as-group``: what files cannot agree on is settled as a group settles it (STRATEGIES 1.12)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.errors import (
    IntegerTensorDiffersError,
    NonFiniteError,
    OverflowRefusedError,
    ResolveError,
)
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies.artefacts import encode_header
from safetensors.numpy import load_file, save_file

LARGE = float(np.finfo(np.float16).max)


def save(path: Path, values: float, count: int) -> Path:
    """A model whose counters are a number."""
    tensors = {"bn.count": np.array([count]), "w": np.full((2, 3), values, np.float16)}
    save_file(tensors, path)
    return path


def test_integers_are_those_of_the_base_else_the_most_frequent(tmp_path: Path) -> None:
    base = save(tmp_path / "base", 0, 5)
    files = [save(tmp_path / f"{n}", n, count) for n, count in enumerate((7, 8, 8), 1)]
    with pytest.raises(IntegerTensorDiffersError) as caught:
        merge_files(files, tmp_path / "out", strategy="linear")

    most = merge_files(files, tmp_path / "most", strategy="linear", is_lenient=True)
    merge_files(files, tmp_path / "of-base", strategy="linear", base=base, is_lenient=True)

    assert "--as-group" in caught.value.hint
    assert load_file(tmp_path / "most")["bn.count"] == [8]
    assert load_file(tmp_path / "of-base")["bn.count"] == [5]
    assert any("bn.count (I64) differs between inputs" in text for text in most.warnings)


def test_values_that_do_not_fit_become_the_largest(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{n}", LARGE / n, 1) for n in (1, 2)]
    options = {"strategy": "linear", "params": {"normalize": "false"}}
    with pytest.raises(OverflowRefusedError):
        merge_files(files, tmp_path / "out", **options)

    result = merge_files(files, tmp_path / "out", **options, is_lenient=True)

    assert (load_file(tmp_path / "out")["w"] == LARGE).all()
    assert any("6 elements" in text for text in result.warnings)


@pytest.mark.parametrize("strategy", ["linear", "karcher", "slerp"])
def test_bytes_and_key_are_those_of_a_group(tmp_path: Path, strategy: str) -> None:
    """Models that cancel out, with counters that differ: a group has a rule for each."""
    files = [save(tmp_path / f"{n}", value, n) for n, value in enumerate((3, -3))]
    described = [describe_file(path) for path in files]
    schema = described[0].manifest.schema
    policy = Policy(strategy=strategy, strategy_version=1, schema=schema.id)
    job = build_job(policy, schema, [file.used for file in described], None, group_mode=True)
    group = run_job(job, tmp_path / "group")

    with pytest.raises(ResolveError):
        merge_files(files, tmp_path / "merged", strategy=strategy)
    merged = merge_files(files, tmp_path / "merged", strategy=strategy, is_lenient=True)

    assert (merged.file_sha256, merged.resolve_key) == (group.file_sha256, group.resolve_key)


def test_a_file_that_is_wrong_alone_stays_refused(tmp_path: Path) -> None:
    files = [save(tmp_path / "a", 1, 1), save(tmp_path / "b", np.nan, 1)]

    with pytest.raises(NonFiniteError):
        merge_files(files, tmp_path / "out", strategy="linear", is_lenient=True)


def test_the_option_warns_of_what_it_settled(tmp_path: Path) -> None:
    files = [str(save(tmp_path / f"{n}", n, n)) for n in range(2)]
    arguments = ["merge", *files, "-o", str(tmp_path / "out"), "--json"]

    refused = CliRunner().invoke(root, arguments)
    done = CliRunner().invoke(root, [*arguments, "--as-group"])

    assert refused.exit_code == 1
    assert done.exit_code == 0
    assert any("bn.count" in text for text in json.loads(done.stdout.splitlines()[-1])["warnings"])


def test_an_artefact_given_in_vain_is_warned_of_as_without_the_option(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{n}", n, 1) for n in (1, 2)]
    header = encode_header({"artefact": "role/1", "role": "forget", "subject": "00" * 32})
    save_file({"artefact": np.frombuffer(header, np.uint8)}, tmp_path / "role")
    options = {"strategy": "linear", "artefacts": [tmp_path / "role"]}

    found = [merge_files(files, tmp_path / "out", **options, is_lenient=x).warnings for x in (False, True)]

    assert found[0] == found[1]
    assert "was not used" in found[0][0]
