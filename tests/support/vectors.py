"""The inputs of the golden vectors of the strategies: dyadic numbers with distinct magnitudes, and uniforms.

Expected outputs stand beside their tests; all agree with independent implementations of the published methods
to 1e-9.
"""

from collections.abc import Mapping

import numpy as np
from crdt_merge_protocol.strategies.reference import MergedArrays, merge_arrays

BASE = np.array([[1, -2, 3, -4], [0.5, 0.25, -1.5, 2]])
DELTAS = (
    np.array([[26, -19, 13, 6], [-38, 32, 0, -12]]) / 64,
    np.array([[18, 14, -16, 10], [-7, 29, -22, 39]]) / 64,
    np.array([[-33, 22, 5, 17], [-9, -27, 35, 20]]) / 64,
)
UNIFORMS = (
    np.array([[0.1, 0.6, 0.3, 0.9], [0.45, 0.05, 0.7, 0.2]]),
    np.array([[0.8, 0.15, 0.35, 0.5], [0.25, 0.95, 0.4, 0.55]]),
    np.array([[0.2, 0.65, 0.12, 0.33], [0.77, 0.48, 0.52, 0.01]]),
)
DIGESTS = tuple(bytes([i]) * 32 for i in (1, 2, 3))
MODELS = tuple({"t": BASE + delta} for delta in DELTAS)


def rows(text: str) -> np.ndarray:
    """Return the numbers of a text, rows separated by ";", as a matrix."""
    return np.array([[float(number) for number in row.split()] for row in text.split(";")])


def merged(strategy: str, params: Mapping[str, str] | None = None, k: int = 3, **options) -> MergedArrays:
    """Return the merge of the first ``k`` models."""
    return merge_arrays(strategy, MODELS[:k], {"t": BASE}, params, digests=DIGESTS[:k], **options)


def change(strategy: str, params: Mapping[str, str] | None = None, k: int = 3, **options) -> np.ndarray:
    """Return what the merge of the first ``k`` models adds to the base."""
    return merged(strategy, params, k, **options).tensors["t"] - BASE
