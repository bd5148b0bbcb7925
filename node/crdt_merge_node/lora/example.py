"""Four machines tune one base by adapters, each on data that the others lack. Run it with ``python -m``.

Softmax regression on synthetic points. The base knows an older truth; each machine sees only some of the
features and trains a low-rank adapter of the difference. Summed, the differences know what all machines saw.
Averaging the factors A and B apart, which is no merge of the differences, is shown for comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
from crdt_merge_protocol.adapters import PREFIX
from crdt_merge_protocol.strategies.contract import Float64Array
from safetensors.numpy import load_file, save_file

from .files import CONFIG, WEIGHTS
from .offline import expand_adapter, merge_adapters

FEATURES: Final = 32
CLASSES: Final = 6
MACHINES: Final = 4
SEEN: Final = FEATURES // MACHINES
RANKS: Final = (2, 3, 4, 6)
"""Of the adapters: they need not agree."""
TRAIN: Final = 800
TEST: Final = 2_000
EPOCHS: Final = 200
LEARNING_RATE: Final = 0.5
ALPHA: Final = 8
MODULE: Final = "classifier"


def main(arguments: list[str] | None = None) -> int:
    """Write a base and four adapters, merge them, print what each is worth and what to type next."""
    parser = argparse.ArgumentParser(prog="python -m crdt_merge_node.lora.example", description=__doc__)
    parser.add_argument("directory", type=Path, help="a new directory")
    place: Path = parser.parse_args(arguments).directory
    place.mkdir(parents=True)
    rng = np.random.default_rng(1)
    old = rng.normal(size=(CLASSES, FEATURES))
    truth = old + rng.normal(size=(CLASSES, FEATURES))
    base = place / "base.safetensors"
    save_file({f"{MODULE}.weight": old.astype(np.float32)}, base)
    adapters = [_train(place, old, truth, number, rng) for number in range(MACHINES)]
    merge_adapters(adapters, place / "merged", strategy="task_arithmetic")
    inputs = rng.normal(size=(TEST, FEATURES))
    rows = [("base, before anybody trained", old)]
    rows += [(f"machine {n} alone, rank {RANKS[n]}", _with(base, path)) for n, path in enumerate(adapters)]
    rows += [
        ("factors averaged apart", old + _factors_apart(adapters)),
        ("merged, task_arithmetic", _with(base, place / "merged")),
    ]
    for name, weights in rows:
        agreeing = (inputs @ weights.T).argmax(1) == (inputs @ truth.T).argmax(1)
        sys.stdout.write(f"  {name:32} {agreeing.mean():6.1%}\n")
    sys.stdout.write(
        f"\nIn a cluster (crdt-merge-node dev --nodes 2), with --data-dir of a node each:\n"
        f"  crdt-merge-node group create tuned --adapters --like {base} --strategy task_arithmetic\n"
        f"  crdt-merge-node contribution add tuned {adapters[0]}\n"
        f"  crdt-merge-node resolve tuned -o {place / 'resolved'}\n"
    )
    return 0


def _train(
    place: Path, old: Float64Array, truth: Float64Array, number: int, rng: np.random.Generator
) -> Path:
    """Train the adapter of one machine, whose data has the other machines' features at zero; write it."""
    inputs = np.zeros((TRAIN, FEATURES))
    seen = slice(number * SEEN, (number + 1) * SEEN)
    inputs[:, seen] = rng.normal(size=(TRAIN, SEEN))
    wanted = np.eye(CLASSES)[(inputs @ truth.T).argmax(1)]
    rank = RANKS[number]
    down, up = rng.normal(size=(rank, FEATURES)) / np.sqrt(FEATURES), np.zeros((CLASSES, rank))
    scale = ALPHA / rank
    for _ in range(EPOCHS):
        scores = inputs @ (old + scale * up @ down).T
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        step = LEARNING_RATE * scale * (chances - wanted).T @ inputs / TRAIN
        up, down = up - step @ down.T, down - up.T @ step
    # What a machine has never seen it shall not change: the first draw of A is noise there.
    outside = np.ones(FEATURES, bool)
    outside[seen] = False
    down[:, outside] = 0
    path = place / f"adapter-{number}"
    path.mkdir()
    tensors = {f"{PREFIX}{MODULE}.lora_A.weight": down, f"{PREFIX}{MODULE}.lora_B.weight": up}
    save_file({name: values.astype(np.float32) for name, values in tensors.items()}, path / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "example/base",
        "r": rank,
        "lora_alpha": ALPHA,
        "target_modules": [MODULE],
    }
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return path


def _with(base: Path, adapter: Path) -> Float64Array:
    """Return the weights of the base with an adapter's difference added."""
    output = adapter.with_name(f"{adapter.name}.safetensors")
    expand_adapter(adapter, output, base=base)
    return np.array(load_file(output)[f"{MODULE}.weight"], np.float64)


def _factors_apart(adapters: list[Path]) -> Float64Array:
    """Return the product of averaged factors, padded to the largest rank."""
    down, up = np.zeros((max(RANKS), FEATURES)), np.zeros((CLASSES, max(RANKS)))
    for path, rank in zip(adapters, RANKS, strict=True):
        tensors = load_file(path / WEIGHTS)
        down[:rank] += tensors[f"{PREFIX}{MODULE}.lora_A.weight"] / MACHINES
        up[:, :rank] += ALPHA / rank * tensors[f"{PREFIX}{MODULE}.lora_B.weight"] / MACHINES
    return up @ down


if __name__ == "__main__":
    sys.exit(main())
