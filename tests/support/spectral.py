"""Models for the tests of strategies that decompose matrices, the same in every process."""

import numpy as np
from crdt_merge_protocol.strategies.reference import merge_arrays

from .artefacts import artefact

DIGESTS = [bytes([i]) * 32 for i in (1, 2, 3, 4, 5)]
ROLES = ("aligned", "unaligned", "safety", "finetuned")
"""All that SafeMERGE asks for."""


def random(*shape, key=1):
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return ((raw >> 11).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def changed(name, models, base, params=None, **options):
    """Return what a strategy changes of the base."""
    merged = merge_arrays(name, models, base, params, digests=DIGESTS[: len(models)], **options)
    return {key: values - base[key] for key, values in merged.tensors.items()}


def some_models(shape, count=3, key=1):
    base = {"w": random(*shape, key=key), "b": random(6, key=key + 1), "embed.w": random(4, 3, key=key + 2)}
    return base, [
        {name: x + 0.1 * random(*x.shape, key=10 * i + key + 3) for name, x in base.items()}
        for i in range(count)
    ]


def roles(names):
    """Return artefacts that give the models, in their order, these roles."""
    return [artefact("role", {"role": r}, subject=d) for r, d in zip(names, DIGESTS, strict=False)]
