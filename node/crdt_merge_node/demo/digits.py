"""A small network on the handwritten digits that scikit-learn bundles (UCI ML repository, 1,797 images, 8x8).

Two layers, 64-64-10, ReLU and softmax, plain stochastic gradient descent in float32. All nodes start from one
common base, trained lightly on a few images of all classes; each then fine-tunes on its own shard, which has
four of the ten classes, every class on two shards. Alone, such a model forgets the classes that it does not
see; merged, the models know all ten.

Training uses BLAS, whose last bits depend on the host. That is fine: nodes agree on the merge of the *files*
that were contributed, whatever is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32Array: TypeAlias = NDArray[np.float32]
Parameters: TypeAlias = dict[str, Float32Array]
"""``hidden.weight`` (64, 64), ``hidden.bias`` (64,), ``output.weight`` (64, 10), ``output.bias`` (10,)."""

SHARDS: Final = ((0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7), (6, 7, 8, 9), (8, 9, 0, 1))
"""Classes that each of five nodes sees."""
TEST_IMAGES: Final = 540
BASE_IMAGES: Final = 100
BASE_EPOCHS: Final = 20
FINE_TUNE_EPOCHS: Final = 10
LEARNING_RATE: Final = 0.1
BATCH_IMAGES: Final = 32
HIDDEN_UNITS: Final = 64
CLASSES: Final = 10


@dataclass(frozen=True, slots=True)
class Images:
    """Flattened images in [0, 1], ``(n, 64)`` float32, and their classes, ``(n,)``."""

    pixels: Float32Array
    classes: NDArray[np.int64]

    def pick(self, chosen: NDArray[np.int64]) -> Images:
        """Return the images at these positions."""
        return Images(self.pixels[chosen], self.classes[chosen])


@dataclass(frozen=True, slots=True)
class Task:
    """The images, split at random into base, training and held-out ones."""

    base: Images
    train: Images
    test: Images

    def shard(self, node: int) -> Images:
        """Return the training images that one node sees."""
        return self.train.pick(np.flatnonzero(np.isin(self.train.classes, SHARDS[node % len(SHARDS)])))


def load_task(seed: int) -> Task:
    """Return the digits, split by ``seed``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = Images((bunch.data / 16.0).astype(np.float32), bunch.target.astype(np.int64))
    order = np.random.default_rng([seed, 0]).permutation(len(images.classes))
    test, rest = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Task(
        base=images.pick(rest[:BASE_IMAGES]), train=images.pick(rest[BASE_IMAGES:]), test=images.pick(test)
    )


def train_base(task: Task, seed: int) -> Parameters:
    """Return the lightly trained model that all nodes start from."""
    rng = np.random.default_rng([seed, 1])
    initial = {
        "hidden.weight": rng.normal(0, (2 / 64) ** 0.5, (64, HIDDEN_UNITS)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN_UNITS, np.float32),
        "output.weight": rng.normal(0, (1 / 64) ** 0.5, (HIDDEN_UNITS, CLASSES)).astype(np.float32),
        "output.bias": np.zeros(CLASSES, np.float32),
    }
    return train(initial, task.base, epochs=BASE_EPOCHS, rng=rng)


def fine_tune(base: Parameters, task: Task, *, node: int, round_number: int, seed: int) -> Parameters:
    """Return what a node makes of the base on its own shard; another round sees it in another order."""
    rng = np.random.default_rng([seed, 2, node, round_number])
    return train(base, task.shard(node), epochs=FINE_TUNE_EPOCHS, rng=rng)


def train(start: Parameters, images: Images, *, epochs: int, rng: np.random.Generator) -> Parameters:
    """Return ``start`` after some epochs of stochastic gradient descent on cross-entropy."""
    model = {name: array.copy() for name, array in start.items()}
    for _ in range(epochs):
        order = rng.permutation(len(images.classes))
        for begin in range(0, len(order), BATCH_IMAGES):
            batch = images.pick(order[begin : begin + BATCH_IMAGES])
            for name, gradient in gradients(model, batch).items():
                model[name] -= np.float32(LEARNING_RATE) * gradient
    return model


def gradients(model: Parameters, batch: Images) -> Parameters:
    """Return the gradient of the mean cross-entropy of a batch."""
    hidden, scores = forward(model, batch.pixels)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    error = exponentials / exponentials.sum(axis=1, keepdims=True)
    error[np.arange(len(batch.classes)), batch.classes] -= 1
    error /= len(batch.classes)
    hidden_error = (error @ model["output.weight"].T) * (hidden > 0)
    return {
        "hidden.weight": batch.pixels.T @ hidden_error,
        "hidden.bias": hidden_error.sum(axis=0),
        "output.weight": hidden.T @ error,
        "output.bias": error.sum(axis=0),
    }


def forward(model: Parameters, pixels: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return the hidden activations ``(n, 64)`` and the class scores ``(n, 10)``."""
    hidden = np.maximum(pixels @ model["hidden.weight"] + model["hidden.bias"], np.float32(0))
    return hidden, hidden @ model["output.weight"] + model["output.bias"]


def accuracy(model: Parameters, images: Images) -> float:
    """Return the share of images classified right."""
    return float((forward(model, images.pixels)[1].argmax(axis=1) == images.classes).mean())
