"""The golden vectors of the strategies, from the data file beside this one, and merges of their inputs."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from crdt_merge_protocol.strategies.reference import MergedArrays, merge_arrays

DATA = tomllib.loads(Path(__file__).with_name("golden_vectors.toml").read_text())
BASE = np.array(DATA["base"], np.float64)
DELTAS = tuple(np.array(delta) / 64 for delta in DATA["deltas_in_64ths"])
UNIFORMS = tuple(np.array(values) for values in DATA["uniforms"])
FISHERS = tuple(np.array(values, np.float64) for values in DATA["fishers"])
GRAMS = tuple(np.array(values, np.float64) for values in DATA["grams"])
LOCATED = tuple(np.array(values, np.float64) for values in DATA["located"])
DIGESTS = tuple(bytes([i]) * 32 for i in (1, 2, 3))
MODELS = tuple({"t": BASE + delta} for delta in DELTAS)


def merged(strategy: str, params: Mapping[str, str] | None = None, k: int = 3, **options) -> MergedArrays:
    """Return the merge of the first ``k`` models."""
    return merge_arrays(strategy, MODELS[:k], {"t": BASE}, params, digests=DIGESTS[:k], **options)
