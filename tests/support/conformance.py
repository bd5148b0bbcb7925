"""Models and merges for the tests that every registered strategy is held to."""

import inspect

import numpy as np
import pytest
from crdt_merge_protocol.strategies.registry import get, names

from .synthetic import case_of

SHAPES = {"": (), "a": (3, 4), "b": (7,), "c": (0,), "d": (2, 1, 5), "e": (6, 5)}
"""A scalar, matrices either way, a vector, nothing, and three dimensions."""
COUNT = 5
"""Enough models for every default."""
EVERY = pytest.mark.parametrize("name", names())
BITWISE = [name for name in names() if get(name).determinism == "bitwise"]


def model(rng, scale=1.0):
    """Return float32 values on a coarse grid, where ties and cancellations happen, or off it."""
    grid = rng.integers(2)
    return {
        name: np.asarray(
            rng.integers(-6, 7, shape) / 4 * scale if grid else rng.normal(size=shape) * scale, np.float32
        )
        for name, shape in SHAPES.items()
    }


def case(name, params=None, *, seed=1, count=COUNT, models=None, base=None):
    rng = np.random.default_rng(seed)
    made = [model(rng) for _ in range(count)] if models is None else models
    return case_of(name, made, model(rng) if base is None else base, params)


def uses_linear_algebra(name):
    return "linear_algebra" in inspect.getsource(inspect.getmodule(type(get(name))))


def tall(name, rows):
    """Return the shape of a matrix of several blocks, but of a small one if it is one block anyway."""
    made = case(name, models=[{"w": np.zeros((rows, 24), np.float32)}] * COUNT, base={})
    return (30, 12) if get(name).granularity(made.context, 0) == "tensor" else (rows, 24)


def content(result):
    return {name: x.tobytes() for name, x in result.tensors.items()}


def assert_same(first, second):
    assert content(first) == content(second)
    assert first.decisions == second.decisions
