"""``python -m tests.nightly.large_merge``: merge two large models by TIES within a gibibyte (TARGETS B8).

``CRDT_MERGE_TEST_LARGE_MIB`` is the size of each model, 14,336 for one of seven thousand million parameters,
``CRDT_MERGE_TEST_LARGE_FOLDER`` where they go. A base that is one hole and models of which three quarters are
holes take little room: a quarter of their size, plus the output. Holes are merged like anything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.tensorfile import layout
from rich.console import Console

from tests.benchmarks.measure import MIB, PeakMemory

CLI: Final = Path(sys.executable).with_name("crdt-merge-node")
BUDGET_MIB: Final = 1024
DEFAULT_MIB: Final = 3_584
ROWS, COLUMNS = 8_192, 4_096
"""Of one tensor: 64 MiB."""
DENSE_ROWS: Final = ROWS // 4
DENSITY: Final = "0.1"
"""Less than the dense share of a model, so that the threshold lies among numbers that differ."""

console = Console(highlight=False, soft_wrap=True, markup=False)


def main() -> int:
    """Merge and measure; return 1 if the budget was not kept."""
    size_mib = int(os.environ.get("CRDT_MERGE_TEST_LARGE_MIB", DEFAULT_MIB))
    folder = os.environ.get("CRDT_MERGE_TEST_LARGE_FOLDER")
    with tempfile.TemporaryDirectory(prefix="cmn-large-", dir=folder) as name:
        directory = Path(name)
        specs = [
            TensorSpec(name=f"layer.{number:03}", dtype="BF16", shape=(ROWS, COLUMNS))
            for number in range(max(size_mib * MIB // (2 * ROWS * COLUMNS), 1))
        ]
        base = write(directory / "base.safetensors", specs, seed=None)
        models = [write(directory / f"{seed}.safetensors", specs, seed=seed) for seed in (1, 2)]
        output = directory / "out.safetensors"
        command = [str(CLI), "merge", *map(str, models), "-o", str(output), "--base", str(base)]
        command += ["--strategy", "ties", "--param", f"density={DENSITY}", "--memory", f"{BUDGET_MIB}MiB"]
        began = time.monotonic()
        process = subprocess.Popen(command)
        with PeakMemory(process.pid) as peak:
            status = process.wait()
        written = output.stat().st_size if status == 0 else 0
        console.print(
            f"two models of {models[0].stat().st_size / MIB:,.0f} MiB in bf16 and a base, ties: "
            f"{time.monotonic() - began:,.0f} s, peak {peak.nbytes / MIB:,.0f} of {BUDGET_MIB:,} MiB of "
            f"anonymous and shared memory, {written / MIB:,.0f} MiB written"
        )
    return 1 if status or peak.nbytes > BUDGET_MIB * MIB else 0


def write(path: Path, specs: list[TensorSpec], *, seed: int | None) -> Path:
    """Write a model: the first quarter of every tensor is drawn from the seed, the rest is a hole."""
    header, _ = layout(specs)
    tensor_bytes = 2 * ROWS * COLUMNS
    with path.open("wb") as file:
        file.write(header)
        if seed is not None:
            draw = np.random.default_rng(seed)
            values = draw.standard_normal(DENSE_ROWS * COLUMNS, np.float32) * np.float32(0.02)
            drawn = (values.view(np.uint32) >> 16).astype(np.uint16)
            for number in range(len(specs)):
                file.seek(len(header) + number * tensor_bytes)
                file.write(np.roll(drawn, 4_099 * number).data)  # No two tensors are alike.
        file.truncate(len(header) + len(specs) * tensor_bytes)
    return path


if __name__ == "__main__":
    sys.exit(main())
