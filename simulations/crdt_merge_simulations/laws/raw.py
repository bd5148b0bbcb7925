"""A strategy as a plain operator on two models: no state, no canonical order, no deduplication.

The strategies of this project sort their inputs by digest and keep one of each digest. To measure what is
below that, every call here names its two models by their places: the first argument has the smaller digest
and the second is another contribution even if its tensors are equal. Results are rounded to float32, as they
would be if each was stored. Whatever is random is drawn anew for each pair of inputs and each order of them,
from a seed that follows from their tensors, so that equal calls are equal.

The fold of three replicas is what a network without a state would do: each merges what arrives into what it
has. They get the same three models in three orders, each once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.resolve_key import seed_of
from crdt_merge_protocol.strategies.contract import Strategy
from crdt_merge_protocol.strategies.reference import digest_of, merge_arrays

from .artefacts import synthetic
from .cases import params_for, places
from .models import Gap, Model, gap, rounded, widest

MERGES = 11
"""Merges of two models that :func:`measure` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """How far an operator is from each law, on one triple of models."""

    commutative: Gap
    """f(a, b) and f(b, a)."""
    associative: Gap
    """f(f(a, b), c) and f(a, f(b, c))."""
    idempotent: Gap
    """f(a, a) and a."""
    replicas: Gap
    """The naive gap: the farthest two of three replicas that folded a b c, b c a and c a b."""
    sorted_commutative: Gap
    """f(a, b) and f(b, a) where f first sorts its inputs by digest, as all merges of a node do."""

    @property
    def is_hidden(self) -> bool:
        """Whether only the canonical order makes it commutative."""
        return self.sorted_commutative.is_bitwise and self.commutative.verdict == "broken"


class Operator:
    """f(x, y) for one strategy."""

    def __init__(self, strategy: Strategy, base: Model | None, roles: Sequence[str]) -> None:
        self._strategy = strategy
        self._base = base
        self._roles = roles

    def __call__(self, x: Model, y: Model) -> Model:
        """Return the merge of two models in this order."""
        seed = digest("crdt-merge/laws/seed", *_names([x, y]))
        return self._merge([x, y], places(2), places(2)[0], seed)

    def canonical(self, x: Model, y: Model, origin: Model) -> Model:
        """Return the merge by digests that follow from content; ``origin``: what a parameter may name."""
        names = _names([x, y])
        return self._merge([x, y], names, _names([origin])[0], seed_of(names))

    def _merge(self, models: Sequence[Model], names: Sequence[bytes], origin: bytes, seed: bytes) -> Model:
        made = synthetic(self._strategy, models, names, self._roles)
        return rounded(
            merge_arrays(
                self._strategy.id,
                models,
                self._base,
                params_for(self._strategy, origin),
                digests=names,
                seed=seed,
                artefacts=[item.anonymous() for item in made],
            )
        )


def measure(
    operator: Operator, a: Model, b: Model, c: Model, *, afford: Callable[[float], None] = lambda _: None
) -> Raw:
    """Return how far an operator is from each law on three models.

    Args:
        afford: Told the CPU seconds of the first merge; raises if that many more would be too many.

    Raises:
        ResolveError: A merge is refused.
    """
    began = time.process_time()
    ab = operator(a, b)
    afford(time.process_time() - began)
    bc, ca = operator(b, c), operator(c, a)
    left = operator(ab, c)
    return Raw(
        commutative=gap(ab, operator(b, a)),
        associative=gap(left, operator(a, bc)),
        idempotent=gap(operator(a, a), a),
        replicas=widest([left, operator(bc, a), operator(ca, b)]),
        sorted_commutative=gap(operator.canonical(a, b, a), operator.canonical(b, a, a)),
    )


def _names(models: Sequence[Model]) -> list[bytes]:
    return [digest_of(model, Fraction(1)) for model in models]
