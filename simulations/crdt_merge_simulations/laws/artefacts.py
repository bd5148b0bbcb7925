"""Valid artefacts for any models, as a producer would make them: a function of the models alone.

They are drawn, not trained, from a hash of the tensors that they describe. So equal models have equal
artefacts wherever they stand in a call, a merge that is merged again gets its own as if it had been measured
anew, and no law is broken by an artefact that a strategy merely uses. Coefficients of a set follow the
models, not their places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefact_checks import ROLES
from crdt_merge_protocol.strategies.artefacts import SCOPES, Artefact, encode_header
from crdt_merge_protocol.strategies.contract import Strategy
from crdt_merge_protocol.strategies.matrices import matrix_shape
from crdt_merge_protocol.strategies.reference import ArtefactArrays, digest_of

from .models import Array, Model, specs_of

RANK: Final = 2
"""Of surgery adapters, and how many singular values a rank mask keeps."""
FEATURES: Final = 8
SPARE_SAMPLES: Final = 3
"""More inputs than a layer is wide, so that its Gram matrix has full rank."""
ASSIGNMENTS: Final = (
    *((role,) for role in ROLES),
    ("aligned", "unaligned", "finetuned"),
    ("safety", "finetuned", "finetuned"),
    ("aligned", "unaligned", "safety", "finetuned"),
)
"""Roles to try, repeated over the contributions: everybody's the same wherever that will do."""
Made = tuple[dict[str, Any], dict[str, Array]]
"""Header fields and tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """An artefact that nobody has contributed yet, so it has no digest."""

    type: str
    header: dict[str, Any]
    tensors: Mapping[str, Array]
    subject: int | None
    """Position of the model that it describes; None: all of them."""

    def named(self, name: bytes) -> ArtefactArrays:
        """Return it with the digest of its contribution."""
        artefact = Artefact(digest=name, type=self.type, header=self.header, specs=specs_of(self.tensors))
        return ArtefactArrays(artefact, self.tensors)

    def anonymous(self) -> ArtefactArrays:
        """Return it with a digest that follows from its header, for a merge without contributions."""
        return self.named(digest("crdt-merge/laws/artefact", encode_header(self.header)))


def synthetic(
    strategy: Strategy, models: Sequence[Model], names: Sequence[bytes], roles: Sequence[str]
) -> list[Synthetic]:
    """Return everything that a strategy works with, mandatory or not.

    Args:
        models: At least one.
        names: Digest of each, distinct: what artefacts are bound to.
        roles: Repeated over the models; empty: nobody has one.
    """
    needs = strategy.artefacts
    if not needs:
        return []
    seeds = [digest_of(model, Fraction(1)) for model in models]
    made = []
    for need in needs:
        if need.scope == "set":
            order = sorted(range(len(models)), key=lambda i: names[i])
            bond: dict[str, Any] = {
                "set_root": used_root(names).hex(),
                "contributions": [names[i].hex() for i in order],
            }
            fields, tensors = _OF_SETS[need.type]([(seeds[i], models[i]) for i in order])
            made.append(_complete(need.type, bond, fields, tensors, None))
            continue
        for i, (seed, model) in enumerate(zip(seeds, models, strict=True)):
            if need.type == "role" and not roles:
                continue
            fields, tensors = (
                ({"role": roles[i % len(roles)]}, {})
                if need.type == "role"
                else _OF_CONTRIBUTIONS[need.type](seed, model)
            )
            made.append(_complete(need.type, {"subject": names[i].hex()}, fields, tensors, i))
    return made


def _complete(
    type_: str,
    bond: Mapping[str, Any],
    fields: Mapping[str, Any],
    tensors: Mapping[str, Array],
    subject: int | None,
) -> Synthetic:
    header = {"artefact": f"{type_}/1", **bond, **fields}
    return Synthetic(type=type_, header=header, tensors=tensors, subject=subject)


def _draw(seed: bytes, purpose: str, shape: tuple[int, ...]) -> Array:
    """Return multiples of 1/64 above 0 and up to 4 that follow from a hash and a purpose."""
    key = int.from_bytes(digest("crdt-merge/laws/draw", seed, purpose.encode())[:16], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    return (((raw >> 56).astype(np.float32) + np.float32(1)) / np.float32(64)).reshape(shape)


def _coefficient(seed: bytes) -> str:
    """Return a tenth to nine tenths, as text."""
    return f"0.{digest('crdt-merge/laws/coefficient', seed)[0] % 9 + 1}"


def _fisher(seed: bytes, model: Model) -> Made:
    tensors = {name: _draw(seed, name, values.shape) for name, values in model.items()}
    return {"n_samples": 8, "label_mode": "sampled"}, tensors


def _snip(seed: bytes, model: Model) -> Made:
    tensors = {
        f"{at}/{name}": _draw(seed, f"{at}/{name}", values.shape)
        for at in ("base", "self")
        for name, values in model.items()
    }
    return {"n_samples": 8}, tensors


def _gram(seed: bytes, model: Model) -> Made:
    inputs, tensors = {}, {}
    for name, values in model.items():
        if values.ndim < 2:
            continue
        side = math.prod(values.shape[1:])
        # Sums of few products of multiples of 1/64: exact, whichever way a library adds them.
        samples = _draw(seed, name, (side + SPARE_SAMPLES, side)).astype(np.float64)
        inputs[name] = f"in/{name}"
        tensors[f"in/{name}"] = (samples.T @ samples)[np.tril_indices(side)].astype(np.float32)
    return {"n_tokens": 8, "inputs": inputs}, tensors


def _scope(_seed: bytes, model: Model) -> Made:
    scopes = {}
    for name, values in model.items():
        wide = values.astype(np.float64)
        mean, variance = float(wide.mean()), float(wide.var())
        scopes[name] = {"mean": f"{mean:.9f}", "variance": f"{variance:.9f}", "count": values.size}
    return {"scopes": scopes}, {}


def _rows(known: Sequence[tuple[bytes, Model]]) -> list[dict[str, Any]]:
    return [{"match": "*", "lambda": [_coefficient(seed) for seed, _ in known]}]


def _lambdas(known: Sequence[tuple[bytes, Model]]) -> Made:
    return {"rows": _rows(known)}, {}


def _masks(known: Sequence[tuple[bytes, Model]]) -> Made:
    tensors = {
        f"{i}/{spec.name}": (np.arange(min(sides)) < RANK).astype(np.float32)
        for i, (_, model) in enumerate(known)
        for spec in specs_of(model)
        # As in the paper: layers have masks, embeddings have none.
        if (sides := matrix_shape(spec)) is not None
    }
    return {"rows": _rows(known), "origin": "base"}, tensors


def _dam(known: Sequence[tuple[bytes, Model]]) -> Made:
    tensors = {
        f"{i}/{name}": _draw(seed, name, x.shape[1:2] if x.ndim >= 2 else x.shape)
        for i, (seed, model) in enumerate(known)
        for name, x in model.items()
    }
    return {}, tensors


def _surgery(known: Sequence[tuple[bytes, Model]]) -> Made:
    tensors = {}
    for i, (seed, _) in enumerate(known):
        tensors[f"{i}/down"] = _draw(seed, "down", (RANK, FEATURES))
        tensors[f"{i}/up"] = _draw(seed, "up", (FEATURES, RANK))
    return {"inner": "task_arithmetic", "params": {"lambda": "0.3"}}, tensors


def _genome(known: Sequence[tuple[bytes, Model]]) -> Made:
    weights = [_coefficient(seed) for seed, _ in known]
    groups = [{"match": "*", "values": {"density": "0.5", "weight": weights}}]
    return {"inner": "ties", "params": {"lambda": "0.75", "scope": "tensor"}, "layer_groups": groups}, {}


_OF_CONTRIBUTIONS: Final[dict[str, Callable[[bytes, Model], Made]]] = {
    "fisher_diag": _fisher,
    "snip_score": _snip,
    "gram": _gram,
    "weight_scope": _scope,
}
_OF_SETS: Final[dict[str, Callable[[Sequence[tuple[bytes, Model]]], Made]]] = {
    "lambda_table": _lambdas,
    "rank_masks": _masks,
    "dam_coeff": _dam,
    "surgery_adapter": _surgery,
    "genome": _genome,
}
assert {type_ for type_, scope in SCOPES.items() if scope == "set"} == _OF_SETS.keys()
