"""One set of bits for every strategy of the registry, in settings of the host and sizes of blocks (S13)."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_protocol.strategies.contract import LEAF_ELEMENTS
from crdt_merge_protocol.strategies.extras import EXTRA_STRATEGIES
from crdt_merge_protocol.strategies.registry import get, names
from support.synthetic import case_of

TESTS = str(Path(__file__).parents[2])
SHAPES = {"m": (30, 24), "v": (LEAF_ELEMENTS + 500,)}
SETTINGS = [
    ({"OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Prescott"}, 1),
    (
        {
            "OPENBLAS_NUM_THREADS": "1",
            "OPENBLAS_CORETYPE": "Nehalem",
            "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        },
        2,
    ),
]
"""Environment, and leaves in a block. The nightly stage ``determinism`` tries all combinations."""


@functools.cache
def digests(leaves=8):
    """Return SHA-256 of the output of every strategy whose bits are promised, by name."""
    raw = np.random.Philox(key=9).random_raw(6 * 70_000).reshape(6, 70_000)
    arrays = ((raw >> 40).astype(np.float64) - 2.0**23) * 2.0**-24
    base, *models = ({"m": row[:720].reshape(30, 24), "v": row[720 : 720 + SHAPES["v"][0]]} for row in arrays)
    found = {}
    for name in names():
        case = case_of(name, models, base)
        if get(name).determinism_in(case.context) == "fp_tolerant":
            continue
        merged = case.merge(weights=range(1, 6), block_elements=leaves * LEAF_ELEMENTS)
        found[name] = hashlib.sha256(b"".join(x.tobytes() for x in merged.tensors.values())).hexdigest()
    return found


@pytest.mark.parametrize(("setting", "leaves"), SETTINGS, ids=lambda value: str(len(str(value))))
def test_every_strategy_has_one_digest_in_every_setting(setting, leaves):
    code = (
        f"import json, runpy, sys; sys.path.insert(0, {TESTS!r});"
        f"print(json.dumps(runpy.run_path({__file__!r})['digests']({leaves})))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS", "NPY"))}

    other = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **setting}, capture_output=True, text=True, check=True
    )

    assert json.loads(other.stdout) == digests()


def test_the_digest_of_the_extras_is_the_one_of_every_release():
    """Pinned: other bits from equal inputs need a new strategy version, or groups fall apart."""
    found = digests()
    together = "".join(found[strategy.id] for strategy in EXTRA_STRATEGIES)

    assert (
        hashlib.sha256(together.encode()).hexdigest()
        == "75a3de09255b7fe9b1370f468486a7ba9c7cbb635a0639ca555e23644712dfd9"
    )
