"""``python -m tests.aarch64.digests PART FILE``: digests by name, as JSON. Runs on both machines.

Inputs are made of Philox words with integers and products with powers of two. Only the artefacts of
:mod:`support.synthetic` are not; they have digests of their own, to tell other inputs from other merges.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import numpy as np
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_protocol import canonical
from crdt_merge_protocol.blobs import TensorSpec, blob_digest_of
from crdt_merge_protocol.errors import ResolveError
from crdt_merge_protocol.merkle import root_of
from crdt_merge_protocol.resolve_key import resolve_key, seed_of, used_root
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.registry import get, plain_names
from crdt_merge_protocol.tensorfile import layout
from support.authors import KEYS, Author, hash_of, make_genesis, meet
from support.synthetic import case_of
from unit.strategies import test_determinism, test_determinism_of_every

SHAPES: Final = {"a.weight": (48, 40), "b.bias": (40,), "c.scale": (), "d.none": (0, 3), "e.flat": (70_001,)}
SMALL: Final = {"a.weight": (8, 10), "b.bias": (7,), "c.scale": ()}
EXTREMES: Final = (("F64", 1024), ("F32", 128), ("F64", -1060), ("F32", -140))
"""Exponents that bring overflow, infinity less infinity, and numbers below the normal ones."""
MODELS: Final = 3
IN_ALL_DTYPES: Final = ("weight_average", "slerp", "task_arithmetic", "ties", "dare_ties", "della")
DTYPES: Final = ("F64", "F32", "F16", "BF16")


def strategies() -> dict[str, str]:
    """Return the output of every strategy whose bits are promised, and of their usual parameters."""
    found = test_determinism_of_every.digests()
    model = {name: np.zeros(shape) for name, shape in test_determinism_of_every.SHAPES.items()}
    inputs = {
        f"artefacts of {name}": _sha256(
            values.tobytes()
            for artefact in case_of(name, [model] * 5, model).artefacts
            for _, values in sorted(artefact.tensors.items())
        )
        for name in found
        if get(name).artefacts
    }
    return {
        **inputs,
        **found,
        "common strategies with parameters": test_determinism.output_digest(),
        "further strategies with parameters": test_determinism.output_digest(True),
    }


def files() -> dict[str, str]:
    """Return what ``merge_files`` writes and says: the files, the key of the result, the output digest."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            models = [_write(Path(folder), number, dtype) for number in range(MODELS + 1)]
            for strategy in plain_names() if dtype == "F32" else IN_ALL_DTYPES:
                found[f"{strategy}, {dtype}"] = _merge(strategy, models)
        for dtype, exponent in EXTREMES:
            models = [_write(Path(folder), number, dtype, exponent) for number in range(MODELS + 1)]
            for strategy in plain_names():
                found[f"{strategy}, {dtype} times 2^{exponent}"] = _merge(strategy, models)
    return found


def _merge(strategy: str, models: list[Path]) -> str:
    """Return one digest of all that a merge of models to the first, the base, writes and says."""
    chosen = get(strategy)
    base, *used = models
    used = used[:1] if strategy == "passthrough" else used[: chosen.k_max]
    output = base.with_name("output")
    try:
        result = merge_files(
            used, output, strategy=strategy, base=None if chosen.base == "unused" else base, workers=0
        )
    except ResolveError as error:
        return f"refused: {type(error).__name__}: {error.message}"
    modulators = result.modulators_path.read_bytes() if result.modulators_path else b""
    return _sha256([output.read_bytes(), result.resolve_key, result.output_digest, modulators])


def formats() -> dict[str, str]:
    """Return ids, roots and keys of a small history with everything that a group can hold."""
    authors = [Author(make_genesis(admins=KEYS[:2], quorum=2, holders=1), number) for number in range(4)]
    tags = [
        author.add(f"content{number}{content}", slot=f"slot{content % 2}", weight=(number + 1) << 31).id
        for number, author in enumerate(authors)
        for content in range(5)
    ]
    meet(*authors)
    authors[0].remove(*tags[:2])
    authors[1].hold(*tags[1:18])
    authors[2].change_policy(KEYS[:2], strategy="ties", params=(("density", "0.3"),))
    meet(*authors)
    state = authors[3].state
    contents = [shown.content for shown in state.view.visible]
    words = np.random.Philox(key=11).random_raw(5_000 * 4).astype("<u8").tobytes()
    ids = [words[start : start + 32] for start in range(0, len(words), 32)]
    values = [0, -1, 2**63, -(2**63), "\u00e9\u4e2d", bytes(300), None, True, [["x" * 70, []]]]
    return {
        "group": state.group.hex(),
        "operations with signatures": _sha256(signed.encoded for signed in state.causal()),
        "root of the operations": state.sync_root.hex(),
        "view": state.view.fingerprint.hex(),
        "recipe": _sha256([state.view.policy.recipe()]),
        "root of 5,000 ids": root_of(ids).hex(),
        "canonical values": _sha256([canonical.encode(values)]),
        "blob of three chunks": blob_digest_of(words * 15).hex(),
        "resolve key": resolve_key(used_root(contents), state.view.policy.recipe()).hex(),
        "resolve key with artefacts": resolve_key(
            used_root(contents), b"recipe", artefacts=ids[:3], task=hash_of("task")
        ).hex(),
        "seed": seed_of(contents).hex(),
    }


PARTS: Final[dict[str, Callable[[], dict[str, str]]]] = {
    "strategies": strategies,
    "files": files,
    "formats": formats,
}


def _write(folder: Path, number: int, dtype: str, exponent: int = 0) -> Path:
    """Write a model of dyadic numbers below one half times this power of two, a small one for extremes."""
    shapes = SMALL if exponent else SHAPES
    specs = [TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items()]
    start, offsets = layout(specs)
    raw = np.random.Philox(key=100 + number).random_raw(sum(spec.numel for spec in specs))
    values = np.ldexp(((raw >> 40).astype(np.float64) - 2.0**23) * 2.0**-24, exponent)
    data = bytearray(start)
    for spec, first in zip(specs, itertools.accumulate((s.numel for s in specs), initial=0), strict=False):
        assert offsets[spec.name] == len(data)
        data += encode_block(dtype, values[first : first + spec.numel])
    path = folder / f"{dtype}-{exponent}-{number}.safetensors"
    path.write_bytes(data)
    return path


def _sha256(parts: Iterable[bytes]) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(PARTS[sys.argv[1]](), indent=1))
