"""Tensors that are one tensor under several names, such as an embedding and the output layer tied to it.

A model that is saved with both copies does not say that they are one; but that every input has the same
bytes under both names does. Such tensors are merged once, under the leader's name, and the result is written
under every name. So the merge does not untie them, though random masks depend on names, and they count once
in statistics of the whole model (STRATEGIES 1.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from crdt_merge_protocol.blobs import FLOAT_DTYPES, TensorSpec
from crdt_merge_protocol.strategies.choosing import named_strategies
from crdt_merge_protocol.strategies.matrices import is_embedding
from crdt_merge_protocol.strategies.parameters import Table, Value
from crdt_merge_protocol.strategies.registry import get

from .job import ResolveJob

ELEMENTS_MIN: Final = 1 << 16
"""Smaller matrices may be equal by coincidence, like vectors of ones; nobody ties such."""
_UNNAMED: Final = (b"", bytes(32))
"""In place of the digest of bytes that nobody has read yet."""
_ROLE: Final = "role"


@dataclass(frozen=True, slots=True)
class Tied:
    """Which tensors are written as copies of which."""

    leaders: Mapping[str, str] = field(default_factory=dict)
    """By the copy's name, the name of the tensor that it is a copy of."""
    warnings: tuple[str, ...] = ()
    """Of equal tensors that are merged apart."""


def _reads_base(job: ResolveJob) -> bool:
    """Tell whether float tensors of the base can matter; only then is it certain that they are here."""
    working = (get(job.strategy), *named_strategies(dict(job.params)))
    return job.base is not None and any(strategy.base != "unused" for strategy in working)


def find_tied(job: ResolveJob, params: Mapping[str, Value]) -> Tied:
    """Return the float matrices of a job that are equal in every input.

    A function of the job alone: what its inputs hold, never of what a node has. Tensors that a parameter
    tells apart are merged apart, and all are if there are artefacts other than roles: those are made for
    tensors by their names.

    Args:
        job: What is merged.
        params: As the strategy validates them.
    """
    leaders: dict[str, str] = {}
    warnings: list[str] = []
    has_artefacts = any(item.artefact.type != _ROLE for item in job.artefacts)
    for specs in _equal(job):
        leader, *copies = sorted(specs, key=lambda spec: not is_embedding(spec.name))
        for copy in copies:
            if has_artefacts or not _are_treated_alike(job, params, leader.name, copy.name):
                why = "artefacts speak of tensors" if has_artefacts else "a parameter tells them apart"
                warnings.append(
                    f"{copy.name} is equal to {leader.name} in all inputs, but merged apart: {why}."
                )
            else:
                leaders[copy.name] = leader.name
    return Tied(leaders, tuple(warnings))


def may_be_tied(job: ResolveJob) -> list[tuple[str, str]]:
    """Return (copy, leader) of embeddings of one shape in files that nobody has read yet.

    Headers do not say whether the bytes are the same; what parameters and artefacts say of them is left out.
    """
    found: dict[tuple[object, ...], list[str]] = {}
    for spec in job.schema.specs:
        is_unread = all(model.tensors[spec.name].blob in _UNNAMED for model in job.inputs)
        if is_unread and is_embedding(spec.name) and _can_be_tied(spec):
            found.setdefault((spec.shape, spec.dtype), []).append(spec.name)
    return [(copy, names[0]) for names in found.values() for copy in names[1:]]


def _can_be_tied(spec: TensorSpec) -> bool:
    return spec.dtype in FLOAT_DTYPES and len(spec.shape) == 2 and spec.numel >= ELEMENTS_MIN


def _equal(job: ResolveJob) -> Iterator[Sequence[TensorSpec]]:
    """Yield matrices that have the same shape, type and bytes in every input, in byte order of the names."""
    models = [*job.inputs, *([job.base] if job.base is not None and _reads_base(job) else [])]
    found: dict[tuple[object, ...], list[TensorSpec]] = {}
    for spec in job.schema.specs:
        if not _can_be_tied(spec):
            continue
        blobs = tuple(model.tensors[spec.name].blob for model in models)
        if any(blob in _UNNAMED for blob in blobs):
            continue
        types = (spec.dtype, *(model.dtype_of(spec) for model in (*job.inputs, *filter(None, [job.base]))))
        found.setdefault((spec.shape, types, blobs), []).append(spec)
    return (specs for specs in found.values() if len(specs) > 1)


def _are_treated_alike(job: ResolveJob, params: Mapping[str, Value], first: str, second: str) -> bool:
    digests = ("", *(model.digest.hex() for model in job.inputs))
    tables = [value for value in params.values() if isinstance(value, Table)]
    return all(table.at(first, who) == table.at(second, who) for table in tables for who in digests)
