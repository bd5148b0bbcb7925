"""``merge`` over an output that is there: by worker processes, and killed or cancelled on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.resolve.merge import merge_files
from safetensors.numpy import save_file

TENSORS = 5
ROWS = 300
"""Of 1,000 elements: each tensor is cut into several chunks."""


def save(path: Path, seed: int, **changed: int) -> Path:
    tensors = {}
    for number in range(TENSORS):
        rng = np.random.default_rng([changed.get(f"t{number}", seed), number])
        tensors[f"t{number}"] = rng.standard_normal((ROWS, 1000)).astype(np.float32)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    room = tmp_path_factory.mktemp("models")
    return [save(room / f"model{seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("newer") / "model2", 2, t1=7)


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("shard_bytes", [0, 3 << 20])
def test_workers_copy_what_is_there_and_compute_the_rest(
    models: list[Path], newer: Path, tmp_path: Path, shard_bytes: int
) -> None:
    options = {"strategy": "linear", "workers": 1, "shard_bytes": shard_bytes}
    merge_files(models, tmp_path / "out", **options)
    result = merge_files([models[0], newer], tmp_path / "out", reuses=True, **options)
    fresh = merge_files([models[0], newer], tmp_path / "fresh", **options)

    assert result.reused_tensors == TENSORS - 1
    assert result.reused_bytes == (TENSORS - 1) * ROWS * 4000
    assert (result.file_sha256, result.output_digest) == (fresh.file_sha256, fresh.output_digest)
    assert fresh.reused_tensors == 0


def test_workers_notice_that_the_output_has_changed(models: list[Path], newer: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    merge_files(models, output, strategy="linear", workers=1)
    raw = bytearray(output.read_bytes())
    raw[-1] ^= 1
    output.write_bytes(raw)
    result = merge_files([models[0], newer], output, strategy="linear", workers=1, reuses=True)
    fresh = merge_files([models[0], newer], tmp_path / "fresh", strategy="linear", workers=1)

    assert result.reused_tensors == 0
    assert result.file_sha256 == fresh.file_sha256


SCRIPT = """
import sys
from pathlib import Path
from crdt_merge_node.resolve.merge import merge_files

def progress(done, total, step):
    if step == "merging" and done > total // 2:
        print(step, flush=True)
        sys.stdin.readline()

files = [Path(path) for path in sys.argv[2:]]
merge_files(files, Path(sys.argv[1]), strategy="linear", workers=1, reuses=True, progress=progress)
"""


def test_one_that_is_killed_leaves_the_output_that_it_copies_from(
    models: list[Path], newer: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    merge_files(models, output, strategy="linear", workers=1)
    before = content_of(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(output), str(models[0]), str(newer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"merging\n"
        process.send_signal(signal.SIGKILL)
    left = content_of(tmp_path)
    result = merge_files([models[0], newer], output, strategy="linear", workers=1, reuses=True)

    assert {name: left[name] for name in before} == before
    assert result.reused_tensors == TENSORS - 1
    assert sorted(content_of(tmp_path)) == sorted(before), "what the killed one left was swept away"


def test_the_command_says_how_much_it_took_over(models: list[Path], newer: Path, tmp_path: Path) -> None:
    def merge(*options: str) -> dict:
        command = [sys.executable, "-m", "crdt_merge_node", "merge", "--json", str(models[0]), str(newer)]
        found = subprocess.run(
            [*command, "-o", str(tmp_path / "out"), *options], check=True, capture_output=True, text=True
        )
        return json.loads(found.stdout.splitlines()[-1])

    reports = [merge(), merge(), merge("--fresh")]

    assert [each["reused_tensors"] for each in reports] == [0, TENSORS, 0]
    assert [each["reused_bytes"] for each in reports] == [0, TENSORS * ROWS * 4000, 0]
    assert len({each["file_sha256"] for each in reports}) == 1
