"""Artefacts for tests, as a producer would make them, and their places in a merge of arrays in memory."""

import math

import numpy as np
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import SCOPES, Artefact, encode_header
from crdt_merge_protocol.strategies.reference import ArtefactArrays

DTYPES = {"f8": "F64", "f4": "F32", "f2": "F16"}


def artefact(type_, header=None, tensors=None, *, subject=None, models=None):
    """Return an artefact of a contribution or of a set of them, whose digest follows from what it holds."""
    arrays = dict(tensors or {})
    bond = {"subject": subject.hex()} if SCOPES[type_] == "contribution" else bond_of(models)
    full = {"artefact": f"{type_}/1", **bond, **(header or {})}
    specs = specs_of(arrays)
    parts = [encode([name, array.dtype.str, list(array.shape)]) for name, array in sorted(arrays.items())]
    parts += [array.tobytes() for _, array in sorted(arrays.items())]
    name = digest("test/artefact", encode_header(full), *parts)
    return ArtefactArrays(Artefact(digest=name, type=type_, header=full, specs=specs), arrays)


def bond_of(models):
    """Return the header fields that bind an artefact to a set of contribution digests."""
    return {"set_root": used_root(models).hex(), "contributions": sorted(name.hex() for name in models)}


def specs_of(arrays):
    """Return the specs of arrays in byte order of their names."""
    return tuple(
        TensorSpec(name=name, dtype=DTYPES[arrays[name].dtype.str[1:]], shape=arrays[name].shape)
        for name in sorted(arrays, key=str.encode)
    )


def some_artefacts(strategy, models, digests, roles=()):
    """Return artefacts that a strategy can work with: all it needs, mandatory or not, for these models.

    Args:
        strategy: An instance.
        models: Arrays by tensor name.
        digests: One per model. Values follow from them, so equal models have equal artefacts.
        roles: One per model; none are made without.
    """
    known = dict(zip(digests, models, strict=True))
    made = []
    for need in strategy.artefacts:
        if need.scope == "set":
            made.append(_SETS[need.type](known))
            continue
        for number, (name, model) in enumerate(sorted(known.items())):
            if need.type in _CONTRIBUTIONS:
                header, tensors = _CONTRIBUTIONS[need.type](name, model)
                made.append(artefact(need.type, header, tensors, subject=name))
            elif need.type == "role" and number < len(roles):
                made.append(artefact("role", {"role": roles[number]}, subject=name))
    return made


def _draw(seed, purpose, shape):
    """Return multiples of 1/64 from 0 to 4, float32, that follow from a digest and a text."""
    key = int.from_bytes(digest("test/values", seed, purpose.encode())[:8], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    return ((raw >> 56).astype(np.float32) / np.float32(64)).reshape(shape)


def _fisher(name, model):
    return {"n_samples": 8, "label_mode": "sampled"}, {
        key: _draw(name, key, array.shape) for key, array in model.items()
    }


def _snip(name, model):
    keys = [(f"{at}/{key}", array) for at in ("base", "self") for key, array in model.items()]
    return {"n_samples": 8}, {key: _draw(name, key, array.shape) for key, array in keys}


def _gram(name, model):
    weights = {key: array for key, array in model.items() if array.ndim >= 2 and array.size}
    tensors = {}
    for key, array in weights.items():
        side = math.prod(array.shape[1:])
        inputs = _draw(name, key, (side + 3, side)).astype(np.float64)
        tensors[f"in/{key}"] = (inputs.T @ inputs)[np.tril_indices(side)].astype(np.float32)
    return {"n_tokens": 8, "inputs": {key: f"in/{key}" for key in weights}}, tensors


def _scope(name, model):
    scopes = {key: {"mean": "0.25", "variance": "1.5", "count": max(a.size, 1)} for key, a in model.items()}
    return {"scopes": scopes, "note": name.hex()}, {}


def _lambdas(known):
    numbers = [f"0.{number % 9 + 1}" for number in range(len(known))]
    return artefact("lambda_table", {"rows": [{"match": "*", "lambda": numbers}]}, models=list(known))


def _masks(known):
    numbers = ["0.5"] * len(known)
    tensors = {
        f"{i}/{key}": (np.arange(min(array.shape[0], math.prod(array.shape[1:]))) < 2).astype(np.float32)
        for i, (_, model) in enumerate(sorted(known.items()))
        for key, array in model.items()
        if array.ndim >= 2
    }
    header = {"rows": [{"match": "*", "lambda": numbers}], "origin": "base"}
    return artefact("rank_masks", header, tensors, models=list(known))


def _dam(known):
    tensors = {
        f"{i}/{key}": _draw(name, key, array.shape[1:2] if array.ndim >= 2 else array.shape)
        for i, (name, model) in enumerate(sorted(known.items()))
        for key, array in model.items()
    }
    return artefact("dam_coeff", {}, tensors, models=list(known))


def _surgery(known):
    tensors = {f"{i}/down": np.ones((2, 8), np.float32) for i in range(len(known))}
    tensors |= {f"{i}/up": np.ones((8, 2), np.float32) for i in range(len(known))}
    header = {"inner": "task_arithmetic", "params": {"lambda": "0.3"}}
    return artefact("surgery_adapter", header, tensors, models=list(known))


def _genome(known):
    weights = [f"0.{number % 9 + 1}" for number in range(len(known))]
    groups = [{"match": "*", "values": {"density": "0.5", "weight": weights}}]
    header = {"inner": "ties", "params": {"lambda": "0.75", "scope": "tensor"}, "layer_groups": groups}
    return artefact("genome", header, models=list(known))


_CONTRIBUTIONS = {"fisher_diag": _fisher, "snip_score": _snip, "gram": _gram, "weight_scope": _scope}
_SETS = {
    "lambda_table": _lambdas,
    "rank_masks": _masks,
    "dam_coeff": _dam,
    "surgery_adapter": _surgery,
    "genome": _genome,
}
