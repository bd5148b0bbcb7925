"""Workers are copies of a process with one thread, and fresh interpreters else; the bits are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.resolve.single import ONE_THREAD, is_single
from crdt_merge_node.tensor_writer import TensorWriter
from crdt_merge_protocol.blobs import TensorSpec

SINGLE = """
import sys
from crdt_merge_node.resolve.single import be_single
be_single()
"""
MERGE = """
from pathlib import Path
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.resolve.single import is_single
print(is_single())
print(merge_files([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), strategy="linear", workers=2).nbytes)
"""


def run(code: str, *arguments: object) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()


def model(path: Path, seed: int) -> Path:
    spec = TensorSpec(name="a", dtype="BF16", shape=(700, 900))
    with TensorWriter(path, [spec], fs=SystemFs(), rng=SeededRng(seed)) as writer:
        writer.put("a", np.random.default_rng(seed).standard_normal((700, 900)))
    return path


def test_copies_write_what_fresh_interpreters_write(tmp_path: Path):
    files = [model(tmp_path / f"{seed}", seed) for seed in range(3)]

    copied = run(SINGLE + MERGE, tmp_path / "copied", *files)
    fresh = run("import sys, threading\n" + WAITING_THREAD + MERGE + "done.set()", tmp_path / "fresh", *files)

    assert (copied[0], fresh[0]) == ("True", "False")
    assert (tmp_path / "copied").read_bytes() == (tmp_path / "fresh").read_bytes()


WAITING_THREAD = """
done = threading.Event()
threading.Thread(target=done.wait).start()
"""


def test_a_process_with_a_second_thread_is_not_single():
    code = SINGLE + "import threading\nfrom crdt_merge_node.resolve.single import is_single\n"
    code += "print(is_single())\n" + WAITING_THREAD + "print(is_single())\ndone.set()"

    assert run(code) == ["True", "False"]


def test_a_process_whose_linear_algebra_may_take_threads_is_not_single(monkeypatch: pytest.MonkeyPatch):
    for name in ONE_THREAD:
        monkeypatch.delenv(name, raising=False)

    assert not is_single()


def test_the_command_merge_is_single_before_numpy_comes():
    code = "import sys\nfrom crdt_merge_node.resolve import single\nprint('numpy' in sys.modules)\n"
    code += "import crdt_merge_node.cli.merge\nprint('numpy' in sys.modules)"

    assert run(code) == ["False", "False"]
