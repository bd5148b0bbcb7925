"""Reading the headers of artefacts, which come from strangers: a problem becomes a sentence, never an error.

Also what is read off them later: which row of a table speaks of a tensor, which triangle belongs to a weight.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.limits import TENSORS_MAX

from .artefacts import Artefact
from .globs import fits, is_wild, wildcards

ROWS_MAX: Final = TENSORS_MAX
"""Rows of a table: one per tensor is enough."""
PATTERNS_MAX: Final = 256
"""Rows with a wildcard: each is tried on every tensor."""
WILDCARDS_MAX: Final = 16
"""Wildcards of one pattern. A hundred in a row make one question cost what a hundred of the usual ones do."""
NAME_CHARS_MAX: Final = 200
"""As tensor names: :data:`crdt_merge_protocol.limits.NAME_CHARS_MAX`."""
PROBLEMS_MAX: Final = 16
_DECIMAL: Final = re.compile(r"-?\d{1,20}(\.\d{1,40})?", re.ASCII)
_COMMON: Final = frozenset({"artefact", "subject", "set_root", "base", "note"})


@dataclass(slots=True)
class HeaderReader:
    """Takes fields from one header and collects what is wrong with them."""

    header: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)

    def add(self, problem: str) -> None:
        """Note a problem; enough are enough."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    def take(self, name: str, *, is_optional: bool = False) -> Any:
        """Return a field, or None; a mandatory one that is absent is a problem."""
        self._read.add(name)
        if name not in self.header and not is_optional:
            self.add(f"the header has no {name!r}")
        return self.header.get(name)

    def integer(self, name: str, low: int, high: int = 10**15, *, is_optional: bool = False) -> int | None:
        """Return a whole number within bounds, or None."""
        value = self.take(name, is_optional=is_optional)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            self.add(f"{name} is a whole number from {low} on, not {_show(value)}")
            return None
        return value

    def choice(self, name: str, choices: Sequence[str], *, is_optional: bool = False) -> str | None:
        """Return one of some words, or None."""
        value = self.take(name, is_optional=is_optional)
        if value is None:
            return None
        if value not in choices:
            self.add(f"{name} is one of {', '.join(choices)}, not {_show(value)}")
            return None
        return str(value)

    def boolean(self, name: str, *, is_optional: bool = False) -> bool:
        """Return a truth value; False if there is none."""
        value = self.take(name, is_optional=is_optional)
        if value is not None and type(value) is not bool:
            self.add(f"{name} is true or false, not {_show(value)}")
        return value is True

    def text(self, name: str, *, is_optional: bool = False) -> str | None:
        """Return a short text, or None."""
        value = self.take(name, is_optional=is_optional)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARS_MAX:
            self.add(f"{name} is a text of at most {NAME_CHARS_MAX} characters, not {_show(value)}")
            return None
        return value

    def decimal(self, name: str, *, is_optional: bool = False) -> Fraction | None:
        """Return a number that is written as decimal text, or None."""
        value = self.take(name, is_optional=is_optional)
        if value is None:
            return None
        number = decimal_of(value)
        if number is None:
            self.add(f'{name} is a number as text, such as "0.3", not {_show(value)}')
        return number

    def names(self, name: str, *, is_optional: bool = False) -> list[str]:
        """Return a list of texts; the longest that is allowed is that of all tensors."""
        value = self.take(name, is_optional=is_optional)
        if value is None:
            return []
        if (
            not isinstance(value, list)
            or len(value) > TENSORS_MAX
            or any(not isinstance(item, str) for item in value)
        ):
            self.add(f"{name} is a list of texts")
            return []
        return value

    def mapping(self, name: str, *, is_optional: bool = False) -> dict[str, Any]:
        """Return an object of at most :data:`ROWS_MAX` entries; empty if there is none."""
        value = self.take(name, is_optional=is_optional)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > ROWS_MAX:
            self.add(f"{name} is an object of at most {ROWS_MAX} entries")
            return {}
        return value

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a table, each an object with the pattern ``match``; empty if they are none."""
        value = self.take(name)
        if value is None:
            return []
        is_table = isinstance(value, list) and 0 < len(value) <= ROWS_MAX
        if not is_table or any(not isinstance(row, dict) or not _is_glob(row.get("match")) for row in value):
            self.add(
                f"{name} is a list of 1 to {ROWS_MAX} rows, each with a pattern `match`"
                f" of at most {WILDCARDS_MAX} wildcards"
            )
            return []
        wild = sum(is_wild(row["match"]) for row in value)
        if wild > PATTERNS_MAX:
            self.add(f"{name} has {wild} rows with wildcards, at most {PATTERNS_MAX} are read")
            return []
        return list(value)

    def finish(self) -> list[str]:
        """Return the problems; fields that nobody asked for are one."""
        note = self.header.get("note")
        if note is not None and (not isinstance(note, str) or len(note) > 10 * NAME_CHARS_MAX):
            self.add(f"note is a text of at most {10 * NAME_CHARS_MAX} characters")
        unknown = sorted(set(self.header) - self._read - _COMMON)
        if unknown:
            self.add(f"the header has unknown fields: {', '.join(_show(name) for name in unknown[:8])}")
        return self.problems


def decimal_of(value: object) -> Fraction | None:
    """Return the exact number of a decimal text; None if it is none."""
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        return None
    return Fraction(value)


def row_of(rows: Iterable[Mapping[str, Any]], tensor: str) -> Mapping[str, Any] | None:
    """Return the first row whose pattern ``match`` fits a tensor's name, or None."""
    for row in rows:
        if row["match"] == tensor or fits(row["match"], tensor):
            return row
    return None


def unmatched(rows: Sequence[Mapping[str, Any]], tensors: Iterable[str]) -> list[str]:
    """Return the tensors that no row fits, as :func:`row_of` does, for many at once."""
    exact = {row["match"] for row in rows}
    wild = [pattern for pattern in exact if is_wild(pattern)]
    return [name for name in tensors if name not in exact and not any(fits(glob, name) for glob in wild)]


def triangle_of(artefact: Artefact, weight: str) -> TensorSpec | None:
    """Return the packed lower triangle of a ``gram`` that belongs to a weight tensor, or None."""
    name = artefact.header["inputs"].get(weight)
    return None if name is None else artefact.spec(name)


def triangle_side(numel: int) -> int | None:
    """Return d for d (d + 1) / 2 elements; None if no d gives that."""
    side = 0
    for bit in reversed(range(24)):
        trial = side | 1 << bit
        if trial * (trial + 1) // 2 <= numel:
            side = trial
    return side if side * (side + 1) // 2 == numel else None


def input_axis(spec: TensorSpec, transposed: Container[str]) -> int:
    """Return which axis of a weight the layer's inputs are on: 1 of [out, in, ...], 0 of [in, out]."""
    return 0 if spec.name in transposed else 1


def _is_glob(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= NAME_CHARS_MAX and wildcards(value) <= WILDCARDS_MAX


def _show(value: object) -> str:
    return ascii(value)[:40]
