"""Two contributors, two halves of a task: what their statistics are good for. Run it with ``python -m``.

Softmax regression on synthetic points. Each contributor sees only some of the features; the others are zero
in its data, so training leaves their weights at the base. A plain average halves what each has learnt. The
Fisher diagonal and the Gram matrix both say which inputs a contributor knows nothing of, so that
``fisher_merge`` and ``regmean`` keep what the other learnt about them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.reference import ArtefactArrays, merge_arrays
from safetensors.numpy import load_file, save_file

from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.resolve.describe import describe_file

from .files import read_artefact, write_artefact
from .fisher import fisher_tensors
from .gram import gram_tensors
from .headers import bound_header
from .samples import open_samples

Model = dict[str, npt.NDArray[np.float32]]

FEATURES: Final = 24
CLASSES: Final = 4
SEEN: Final = (slice(0, 14), slice(10, 24))
"""Features that each contributor's data has; four are common."""
TRAIN: Final = 600
TEST: Final = 1_000
EPOCHS: Final = 300
LEARNING_RATE: Final = 0.5
MERGES: Final = (("weight_average", ""), ("fisher_merge", "fisher"), ("regmean", "gram"))
"""Strategy, and the artefacts that it needs."""


@dataclass(frozen=True, slots=True)
class Points:
    """Inputs ``(n, 24)`` float32 and their classes ``(n,)``."""

    inputs: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


def draw(truth: npt.NDArray[np.float32], rng: np.random.Generator, count: int, seen: slice) -> Points:
    """Return points of which only some features are not zero, classified by the true weights."""
    inputs = np.zeros((count, FEATURES), np.float32)
    inputs[:, seen] = rng.normal(size=(count, seen.stop - seen.start))
    return Points(inputs, (inputs @ truth.T).argmax(axis=1))


def probabilities(model: Mapping[str, Any], inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return p(class | input), ``(n, 4)``."""
    scores = inputs @ np.asarray(model["weight"], np.float32).T + np.asarray(model["bias"], np.float32)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def train(base: Model, points: Points) -> Model:
    """Return the base after gradient descent on cross-entropy."""
    model = {name: array.copy() for name, array in base.items()}
    for _ in range(EPOCHS):
        error = probabilities(model, points.inputs)
        error[np.arange(len(points.classes)), points.classes] -= 1
        error /= len(points.classes)
        model["weight"] -= np.float32(LEARNING_RATE) * (error.T @ points.inputs)
        model["bias"] -= np.float32(LEARNING_RATE) * error.sum(axis=0)
    return model


def per_class_gradients(model: Model, points: Points) -> Model:
    """Return the gradients for every example and class, and the probability of the class as ``weight``."""
    shares = probabilities(model, points.inputs)
    gradients = np.eye(CLASSES, dtype=np.float32)[None] - shares[:, None, :]  # (n, label, class)
    count = len(points.classes) * CLASSES
    by_label = gradients.reshape(count, CLASSES)
    inputs = np.repeat(points.inputs, CLASSES, axis=0)
    return {
        "layer.weight": by_label[:, :, None] * inputs[:, None, :],
        "layer.bias": by_label,
        "weight": shares.reshape(count),
    }


def prefixed(model: Mapping[str, Any]) -> Model:
    """Return a model under the names that its file has."""
    return {f"layer.{name}": np.asarray(array, np.float32) for name, array in model.items()}


def accuracy(tensors: Mapping[str, Any], points: Points) -> float:
    """Return the share of points classified right by a model under the names of its file."""
    model = {name.removeprefix("layer."): array for name, array in tensors.items()}
    return float((probabilities(model, points.inputs).argmax(axis=1) == points.classes).mean())


def write_statistics(directory: Path, number: int, model: Model, points: Points) -> bytes:
    """Write a contributor's model, samples and artefacts; return the model's contribution digest."""
    fs, rng = SystemFs(), SystemRng()
    path = directory / f"model-{number}.safetensors"
    save_file(prefixed(model), path)
    described = describe_file(path)
    schema = described.manifest.schema
    samples = directory / f"gradients-{number}.safetensors"
    save_file(per_class_gradients(model, points), samples)
    fields, tensors = fisher_tensors([open_samples(str(samples), fs)], schema, samples=len(points.classes))
    header = bound_header("fisher_diag", {**fields, "label_mode": "expected"}, [described.digest])
    write_artefact(directory / f"fisher-{number}.safetensors", header, tensors, schema=schema, fs=fs, rng=rng)
    np.save(directory / f"inputs-{number}.npy", points.inputs)
    named = f"layer.weight={directory / f'inputs-{number}.npy'}"
    fields, tensors = gram_tensors([open_samples(named, fs)], schema)
    header = bound_header("gram", fields, [described.digest])
    write_artefact(directory / f"gram-{number}.safetensors", header, tensors, schema=schema, fs=fs, rng=rng)
    return described.digest


def load_artefact(path: Path) -> ArtefactArrays:
    """Return an artefact file as a merge in memory takes it."""
    found = read_artefact(path, SystemFs())
    arrays = {name: array for name, array in load_file(path).items() if name != "artefact"}
    specs = tuple(entry.spec for entry in found.tensors)
    digest = describe_file(path).digest
    return ArtefactArrays(Artefact(digest=digest, type=found.type, header=found.header, specs=specs), arrays)


def run(directory: Path, seed: int = 0) -> dict[str, float]:
    """Write all files into a directory and return the accuracy of every merge on points of all features."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    base: Model = {
        "weight": np.zeros((CLASSES, FEATURES), np.float32),
        "bias": np.zeros(CLASSES, np.float32),
    }
    shards = [draw(truth, rng, TRAIN, seen) for seen in SEEN]
    test = draw(truth, rng, TEST, slice(0, FEATURES))
    models = [train(base, shard) for shard in shards]
    digests = [write_statistics(directory, i, models[i], shards[i]) for i in range(len(models))]
    inputs = [prefixed(model) for model in models]
    found = {f"model {i}": accuracy(model, test) for i, model in enumerate(inputs)}
    for strategy, kind in MERGES:
        paths = [directory / f"{kind}-{i}.safetensors" for i in range(len(models))] if kind else []
        merged = merge_arrays(
            strategy, inputs, digests=digests, artefacts=[load_artefact(path) for path in paths]
        )
        found[strategy] = accuracy(merged.tensors, test)
    return found


def main() -> None:
    """Run the example in a temporary directory, or in the one that is named, and print what came of it."""
    parser = argparse.ArgumentParser(description="Merge two models by their statistics.")
    parser.add_argument("directory", nargs="?", type=Path, help="Where to leave the files.")
    chosen = parser.parse_args().directory
    with tempfile.TemporaryDirectory() as scratch:
        for name, share in run(chosen or Path(scratch)).items():
            sys.stdout.write(f"{name:16} {share:6.1%} of {TEST} points right\n")


if __name__ == "__main__":
    main()
