"""Fused tensors seen as the tensors that they are made of.

Some families store the weights of queries, keys and values, or of a gate and what it gates, as one tensor.
A norm, a rank, a share of the largest elements or a random mask of that is not one of its parts. How a
tensor is put together only its family tells, so the rules are the recipe's:

``3``: equal parts along the first axis. ``3072-1024-1024``, or in lowest terms ``3-1-1``: parts of so many
rows. ``12/3``: the first axis is 12 heads, and each of them is three parts, as in GPT-NeoX; ``8/4-1-1``: 8
groups of four shares and twice one, as in Falcon. ``columns/3``: the second axis, as in GPT-2.

Part number j of ``a.b.weight`` is called ``a.b.j.weight``: so parameters by tensor and random masks know it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.blobs import TensorSpec

from .contract import Float64Array

_RULE: Final = re.compile(
    r"(columns/)?(?:([1-9][0-9]{0,6})/)?([1-9][0-9]{0,8}(?:-[1-9][0-9]{0,8})*)", re.ASCII
)
PARTS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """How tensors are put together."""

    axis: int
    groups: int
    """How many times the parts follow each other."""
    shares: tuple[int, ...]
    """Of the parts, relative to each other."""

    def cuts(self, shape: tuple[int, ...]) -> Cuts | None:
        """Return where the parts of a tensor are; None if the rule does not fit its shape."""
        whole = self.groups * sum(self.shares)
        if len(shape) <= self.axis or shape[self.axis] == 0 or shape[self.axis] % whole:
            return None
        unit = shape[self.axis] // whole
        before, after = math.prod(shape[: self.axis]), math.prod(shape[self.axis + 1 :])
        return Cuts(shape, self.axis, before * self.groups, sum(self.shares), unit * after, self.shares)


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where the parts of one tensor are: shares of the middle axis of ``(outer, total, inner)``."""

    shape: tuple[int, ...]
    axis: int
    outer: int
    total: int
    inner: int
    shares: tuple[int, ...]

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each part."""
        length = self.shape[self.axis]
        return [
            (*self.shape[: self.axis], length * share // self.total, *self.shape[self.axis + 1 :])
            for share in self.shares
        ]

    def views(self, flat: Float64Array) -> list[Float64Array]:
        """Return each part of a tensor, ``(outer, share, inner)``: a view."""
        cube = flat.reshape(self.outer, self.total, self.inner)
        found, first = [], 0
        for share in self.shares:
            found.append(cube[:, first : first + share])
            first += share
        return found


def parse_rule(text: str) -> Rule:
    """Return the rule of a text.

    Raises:
        ValueError: The text is no rule.
    """
    match = _RULE.fullmatch(text)
    if match is None:
        raise ValueError(f"parts are a number, or shares as in 4-1-1, perhaps after HEADS/, not {text!r}")
    numbers = [int(number) for number in match[3].split("-")]
    count = numbers[0] if len(numbers) == 1 else len(numbers)
    if count > PARTS_MAX:
        raise ValueError(f"a tensor has at most {PARTS_MAX} parts, not {count}")
    shares = (1,) * count if len(numbers) == 1 else tuple(numbers)
    divisor = math.gcd(*shares)
    return Rule(1 if match[1] else 0, int(match[2] or 1), tuple(share // divisor for share in shares))


def specs_of_parts(spec: TensorSpec, cuts: Cuts) -> list[TensorSpec]:
    """Return the parts of a tensor as tensors."""
    head, _, tail = spec.name.rpartition(".")
    names = [f"{head}.{j}.{tail}" if head else f"{spec.name}.{j}" for j in range(len(cuts.shares))]
    return [
        TensorSpec(name=name, dtype=spec.dtype, shape=shape)
        for name, shape in zip(names, cuts.shapes(), strict=True)
    ]
