"""What decides one tensor of a merge, so that whoever has it already need not compute it again.

A strategy that looks at nothing but one tensor to make that tensor may say so (``Strategy.dependence``) and
names everything besides stored elements that decides the result: its own id and version, the values that
parameters have there, and per contribution that it looks at what is special of it, such as its weight. With
the digests of the stored elements that makes a key: equal keys, equal bytes (``tensor_key``).

Saying nothing is always right: then the tensor is computed. Saying it wrongly is not, hence a test that
changes everything else about a merge and looks whether bits or keys move, for every registered strategy.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from crdt_merge_protocol.canonical import digest, encode

from .artefacts import SCOPES
from .delegation import FALLBACK
from .parameters import Table

if TYPE_CHECKING:
    from crdt_merge_protocol.blobs import TensorSpec

    from .contract import MergeContext, Strategy

Fact = Any
"""None, bool, int, str, bytes or a tuple of facts: what ``canonical.encode`` takes."""
_OF_THE_BINDING: Final = frozenset({"subject", "note"})
"""Fields of an artefact's header that say of whom it is, or nothing that a merge reads."""
_SEED_SCOPE: Final = "seed_scope"
_REMEMBERED_MAX: Final = 64
_remembered: Final[dict[int, tuple[Mapping[str, Any], bytes]]] = {}
"""Digests of headers by identity, with the header, so that no other can have that identity."""


@dataclass(frozen=True, slots=True)
class Term:
    """A contribution whose elements are looked at."""

    contribution: int
    """Its position in ``MergeContext.digests``."""
    fact: Fact = None
    """What decides what becomes of its elements, besides those."""


@dataclass(frozen=True, slots=True)
class Dependence:
    """Everything but stored elements of one tensor that decides that tensor of the result."""

    common: Fact
    terms: tuple[Term, ...]
    """In the order in which they enter sums. Nothing about other contributions matters, nor how many are."""
    is_ordered: bool = True
    """Whether that order can show in the bits."""


def depends(
    strategy: Strategy,
    context: MergeContext,
    tensor_index: int,
    *,
    reads: Sequence[int] | None = None,
    is_drawn: bool = False,
    is_bitwise: bool | None = None,
    is_ordered: bool = True,
    ignored: Collection[str] = (),
) -> Dependence | None:
    """Return the dependence of a tensor on itself alone: all parameters, weights and artefacts count.

    Args:
        strategy: Which merges.
        context: Of the merge.
        tensor_index: Of the tensor.
        reads: Positions of the contributions that are looked at, in order; None: all.
        is_drawn: Random numbers are drawn there. Then digests of contributions count, and the seed unless
            ``seed_scope`` says that every contribution has its own.
        is_bitwise: Whether the same bits are made everywhere; None: if the whole merge is of that class.
        is_ordered: Whether the order of contributions can show in the bits.
        ignored: Parameters that cannot.

    Returns:
        None if the bits depend on who computes them.
    """
    if not (strategy.determinism_in(context) == "bitwise" if is_bitwise is None else is_bitwise):
        return None
    positions = range(context.k) if reads is None else reads
    names = [
        name
        for name in sorted(context.params)
        if name not in ignored and name.partition(".")[0] != FALLBACK  # It stands in for another's work.
    ]
    types = _artefact_types(strategy, context)
    seed = context.seed if is_drawn and context.params.get(_SEED_SCOPE) != "contribution" else b""
    for_all = {name: _plain(context.value(name, tensor_index)) for name in names}
    common = (
        (strategy.id, strategy.version),
        tuple(for_all.items()),
        tuple(
            artefact.digest
            for artefact in context.artefacts
            if artefact.type in types and SCOPES[artefact.type] == "set"
        ),
        seed,
    )
    tables = [name for name in names if isinstance(context.params[name], Table)]
    terms = []
    for i in positions:
        own = {name: _plain(context.value(name, tensor_index, i)) for name in tables}
        values = tuple(item for item in own.items() if item[1] != for_all[item[0]])
        headers = tuple(_header(context, type_, i, tensor_index) for type_ in types)
        drawn = context.digests[i] if is_drawn else b""
        terms.append(Term(i, (_plain(context.weights[i]), values, headers, drawn)))
    return Dependence(common, tuple(terms), is_ordered)


def depends_on_sum(strategy: Strategy, context: MergeContext, coefficients: Sequence[float]) -> Dependence:
    """Return the dependence of a tensor that is ``kernels.combine`` with coefficients known beforehand.

    What has a zero is not read, and a sum of two is the same either way round.
    """
    terms = tuple(Term(i, float(c).hex()) for i, c in enumerate(coefficients) if c != 0.0)
    is_on_base = strategy.uses_base(context)
    return Dependence(("sum", strategy.id, strategy.version, is_on_base), terms, is_ordered=len(terms) > 2)


def within(
    outer: Strategy, found: Dependence | None, taken: Sequence[int] | None = None
) -> Dependence | None:
    """Return the dependence of a strategy that leaves a tensor to another.

    Args:
        outer: Which leaves it.
        found: The other's, in its own context.
        taken: Which contributions that context has, by their positions in the outer one; None: all.
    """
    if found is None:
        return None
    terms = found.terms
    if taken is not None:
        terms = tuple(Term(taken[term.contribution], term.fact) for term in terms)
    return Dependence((outer.id, outer.version, found.common), terms, found.is_ordered)


def tensor_key(
    found: Dependence,
    spec: TensorSpec,
    stored_as: str,
    sources: Sequence[bytes],
    rest: Fact,
) -> bytes:
    """Return what names a tensor of the result before it is computed, 32 bytes.

    Args:
        found: What decides it besides stored elements.
        spec: Of the tensor as written; its name may seed random numbers.
        stored_as: Element type of the inputs.
        sources: Blob digest of the tensor of each contribution, by position.
        rest: Digests of the base's tensor and of artefacts' tensors, and rules of whoever writes.
    """
    terms = [(term.fact, sources[term.contribution]) for term in found.terms]
    if not found.is_ordered:
        terms.sort(key=encode)
    return digest(
        "crdt-merge/tensor-key/1",
        encode((spec.name, spec.dtype, spec.shape, stored_as)),
        encode(found.common),
        encode(terms),
        encode(rest),
    )


def _artefact_types(strategy: Strategy, context: MergeContext) -> list[str]:
    needs = (*strategy.artefacts, *strategy.artefacts_for(context.params))
    return sorted({need.type for need in needs})


def _header(context: MergeContext, type_: str, contribution: int, tensor_index: int) -> Fact:
    """Return what the artefact of a type says of a contribution, and what it has of a tensor."""
    position = context.artefact(type_, contribution) if SCOPES[type_] == "contribution" else None
    if position is None:
        return None
    artefact = context.artefacts[position]
    name = context.specs[tensor_index].name
    held = tuple(spec.name for spec in artefact.specs if spec.name == name or spec.name.endswith(f"/{name}"))
    return _said(artefact.header), held


def _said(header: Mapping[str, Any]) -> bytes:
    """Return a digest of what a header says; large ones are asked about once for every tensor."""
    found = _remembered.get(id(header))
    if found is None or found[0] is not header:
        said = {name: value for name, value in header.items() if name not in _OF_THE_BINDING}
        text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
        found = header, digest("crdt-merge/artefact-said/1", text)
        while len(_remembered) >= _REMEMBERED_MAX:
            _remembered.pop(next(iter(_remembered)), None)
        _remembered[id(header)] = found
    return found[1]


def _plain(value: Any) -> Fact:
    """Return the value of a parameter, or a weight, in one spelling per type."""
    if isinstance(value, Fraction):
        return ("fraction", f"{value.numerator}/{value.denominator}")
    return (type(value).__name__, str(value))
