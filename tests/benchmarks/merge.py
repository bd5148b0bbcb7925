"""The ``merge`` command on a checkpoint in bf16: whole command, start-up included (TARGETS B7, B8).

The floor reads every input from the page cache and writes the output durably, with nothing in between.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.tensorfile import layout

from .measure import MIB, Options, Row, best_s, durable_copy, ms, run_command, times, without_output

CLI = Path(sys.executable).with_name("crdt-merge-node")
HIDDEN = 1024
LAYER = {"q": (1, 1), "k": (1, 1), "v": (1, 1), "o": (1, 1), "gate": (3, 1), "up": (3, 1), "down": (1, 3)}
"""Shapes of a layer of a Llama, in hidden sizes."""
COMMANDS = {
    "weight_average k=3": (3, False, "weight_average"),
    "slerp k=2": (2, False, "slerp"),
    "ties k=3 + base": (3, True, "ties"),
    "dare_ties k=3 + base": (3, True, "dare_ties"),
}


def measure(options: Options) -> Iterator[Row]:
    """Yield a row per command."""
    with tempfile.TemporaryDirectory(prefix="cmn-bench-") as name:
        directory = Path(name)
        specs = _specs(options.checkpoint_mib * MIB)
        *models, base = [_write(directory / f"model-{n}.safetensors", specs, seed=n) for n in range(4)]
        output = directory / "out.safetensors"
        for what, (count, needs_base, strategy) in COMMANDS.items():
            inputs = [*models[:count], *([base] if needs_base else [])]
            floor_s = best_s(lambda inputs=inputs: durable_copy(inputs, output), options.repeats)  # type: ignore[misc]
            command = [
                str(CLI),
                "merge",
                "--fresh",  # Else the second time takes over what the first has written.
                *map(str, models[:count]),
                "-o",
                str(output),
                "--strategy",
                strategy,
            ]
            command += ["--base", str(base)] if needs_base else []
            peaks: list[int] = []
            seconds = best_s(
                lambda command=command, peaks=peaks: peaks.append(_run(command, output)),  # type: ignore[misc]
                max(1, options.repeats - 1),
            )
            yield Row(
                what=f"merge {what}, {options.checkpoint_mib} MiB bf16, whole command",
                measured=f"{ms(seconds)}, peak {max(peaks) / MIB:.0f} MiB",
                against=f"copy of the same bytes {ms(floor_s)}",
                ratio=f"{times(seconds / floor_s)} the copy",
                target="peak <= 512 MiB (B7, B8)",
            )


def _specs(nbytes: int) -> list[TensorSpec]:
    layer = sum(rows * columns for rows, columns in LAYER.values()) * HIDDEN * HIDDEN * 2
    layers = max(1, nbytes // layer)
    return [
        TensorSpec(
            name=f"model.layers.{number}.{name}.weight", dtype="BF16", shape=(rows * HIDDEN, columns * HIDDEN)
        )
        for number in range(layers)
        for name, (rows, columns) in LAYER.items()
    ]


def _write(path: Path, specs: list[TensorSpec], *, seed: int) -> Path:
    header, _ = layout(specs)
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(header)
        for spec in sorted(specs, key=lambda spec: spec.name.encode()):
            values = rng.standard_normal(spec.numel, dtype=np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).data)
    return path


def _run(command: list[str], output: Path) -> int:
    """Run a command; return the peak of anonymous and shared memory over all its processes, in bytes."""
    without_output(output)
    return run_command(command).peak_bytes
