"""Parameters of strategies: decimal text in, exact numbers out.

A recipe holds text, because no floating point number is ever hashed. ``0.29`` stays 29/100: a float would
make ``floor(0.29 * 100)`` 28. Every problem is reported at once, with a suggestion where a name is close.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from crdt_merge_protocol.errors import ParameterError

from .globs import fits

Scalar = Fraction | int | bool | str
PAPER: Final = "paper"
MERGEKIT: Final = "mergekit"
_DECIMAL: Final = re.compile(r"[+-]?(\d{1,20})(\.\d{1,120})?([eE][+-]?\d{1,2})?", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_TEXT: Final = re.compile(r"[A-Za-z0-9._/-]{0,200}", re.ASCII)
_BOOLEANS: Final = {"true": True, "false": False}
_SELECTOR: Final = re.compile(r"(?P<glob>[^#;=]*)(#(?P<digest>[0-9a-f]{8,64}))?", re.ASCII)
ROWS_MAX: Final = 4096
"""Rows of a table; one text of a policy is short enough anyway."""
_PROBLEMS_MAX: Final = 16
"""Unknown names that are told: a genome may hold tens of thousands, and close ones take long to find."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: which tensors, of which contributions, and the value there."""

    glob: str
    """Shell pattern over tensor names; empty: all."""
    digest: str
    """First hex digits of a contribution digest; empty: all."""
    value: Scalar

    @property
    def selector(self) -> str:
        """What it speaks of, as it is written."""
        return f"{self.glob}{'#' + self.digest if self.digest else ''}"

    def matches(self, tensor: str, digest: str) -> bool:
        """Tell whether the row speaks of this tensor of this contribution."""
        return digest.startswith(self.digest) and (not self.glob or fits(self.glob, tensor))


@dataclass(frozen=True, slots=True)
class Table:
    """Values by tensor name and contribution: the first row that matches, else the default."""

    rows: tuple[Row, ...]
    default: Scalar

    def at(self, tensor: str, digest: str) -> Scalar:
        """Return the value for a tensor of a contribution, both as text; empty for all of them."""
        return next((row.value for row in self.rows if row.matches(tensor, digest)), self.default)


Value = Scalar | Table


def idle_rows(values: Mapping[str, Value], tensors: Iterable[str], digests: Iterable[str]) -> list[str]:
    """Return the rows of tables that speak of none of these tensors and contributions: misspelt, perhaps.

    Each is written as ``parameter: selector``.
    """
    names, given = tuple(tensors), tuple(digests)
    return [
        f"{parameter}: {row.selector}"
        for parameter, value in values.items()
        if isinstance(value, Table)
        for row in value.rows
        if not any(digest.startswith(row.digest) for digest in given)
        or not any(not row.glob or fits(row.glob, name) for name in names)
    ]


def possible(value: Value) -> set[Scalar]:
    """Return every value that a parameter can have somewhere."""
    return {row.value for row in value.rows} | {value.default} if isinstance(value, Table) else {value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a strategy."""

    name: str
    type: Literal["decimal", "integer", "boolean", "choice", "text", "strategy"]
    """``strategy``: an id of the registry; it brings that strategy's parameters along (``delegation.py``)."""
    default: str
    """As text, for profile ``paper``."""
    mergekit_default: str | None = None
    """As text, for profile ``mergekit``; None: the same."""
    low: str | None = None
    """Least value, inclusive."""
    high: str | None = None
    """Greatest value, inclusive."""
    choices: tuple[str, ...] = ()
    """All values of a choice; for a number or a strategy, words that may stand in its place."""
    profile: str | None = None
    """The only profile in which it means something; None: all."""
    per: frozenset[Literal["tensor", "contribution"]] = frozenset()
    """What it may differ by; then a table is accepted too: ``GLOB=VALUE;#DIGEST=VALUE;VALUE``."""
    unit: str = ""
    doc: str = ""

    def default_in(self, profile: str) -> str:
        """Return the default text in a profile."""
        if profile == MERGEKIT and self.mergekit_default is not None:
            return self.mergekit_default
        return self.default

    def values(self) -> str:
        """Return which values it takes, in one phrase."""
        if self.type == "choice":
            return "|".join(self.choices)
        if self.type == "boolean":
            return "true|false"
        if self.low is None and self.high is None:
            return "|".join((self.type, *self.choices))
        least, greatest = self.low or "", self.high or ""
        return "|".join((f"{least}..{greatest}", *self.choices))

    def parse(self, text: str, *, default: str | None = None) -> Value:
        """Return the typed value of a text.

        Args:
            default: What a table without a last plain value falls back to; the parameter's own unless given.

        Raises:
            ValueError: Not such a value; the message says what would be.
        """
        if self.per and ("=" in text or ";" in text):
            return self._parse_table(text, self.default if default is None else default)
        return self.parse_scalar(text)

    def _parse_table(self, text: str, default: str) -> Table:
        cells = [cell.strip() for cell in text.split(";")]
        if "=" not in cells[-1]:
            default = cells.pop()
        if len(cells) > ROWS_MAX:
            raise ValueError(f"{self.name} has {len(cells)} rows, at most {ROWS_MAX} are allowed")
        return Table(tuple(self._parse_row(cell) for cell in cells), self.parse_scalar(default))

    def _parse_row(self, cell: str) -> Row:
        selector, equals, value = cell.partition("=")
        match = _SELECTOR.fullmatch(selector.strip())
        if not equals or match is None or not selector.strip():
            raise ValueError(
                f"{self.name}: a row is GLOB=VALUE, #DIGEST=VALUE or GLOB#DIGEST=VALUE, not {cell!r}"
            )
        glob, digest = match["glob"], match["digest"] or ""
        if (glob and "tensor" not in self.per) or (digest and "contribution" not in self.per):
            raise ValueError(
                f"{self.name} may differ by {' and '.join(sorted(self.per))} only, not as in {cell!r}"
            )
        return Row(glob, digest, self.parse_scalar(value.strip()))

    def parse_scalar(self, text: str) -> Scalar:
        """Return the typed value of a text that is no table.

        Raises:
            ValueError: Not such a value; the message says what would be.
        """
        if self.type == "choice" or text in self.choices:
            return self._choose(text)
        if self.type == "boolean":
            if text not in _BOOLEANS:
                raise ValueError(f"{self.name} is true or false, not {text!r}")
            return _BOOLEANS[text]
        if self.type in ("text", "strategy"):
            if not _TEXT.fullmatch(text):
                raise ValueError(f"{self.name} holds letters, digits and ._/- only, at most 200")
            return text
        return self._number(text)

    def _choose(self, text: str) -> str:
        if text not in self.choices:
            raise ValueError(
                f"{self.name} is one of {', '.join(self.choices)}, not {text!r}{_suggest(text, self.choices)}"
            )
        return text

    def _number(self, text: str) -> Fraction | int:
        pattern = _INTEGER if self.type == "integer" else _DECIMAL
        if not pattern.fullmatch(text):
            words = "".join(f" or {word}" for word in self.choices)
            raise ValueError(f"{self.name} is a number{words}, not {text!r}")
        value = Fraction(text)
        if (self.low is not None and value < Fraction(self.low)) or (
            self.high is not None and value > Fraction(self.high)
        ):
            raise ValueError(f"{self.name} lies in {self.low}..{self.high}, not {text}")
        return int(value) if self.type == "integer" else value


def profile_parameter() -> Parameter:
    """Return the parameter that picks whose definition of a method is meant."""
    return Parameter(
        name="profile",
        type="choice",
        default=PAPER,
        choices=(PAPER, MERGEKIT),
        doc="Follow the published method, or mergekit where the two differ.",
    )


def validate_parameters(
    strategy: str, parameters: Sequence[Parameter], texts: Mapping[str, str]
) -> dict[str, Value]:
    """Return every parameter with its typed value, in declaration order.

    Raises:
        ParameterError: Unknown names or values out of range, all of them in one message.
    """
    known = {parameter.name: parameter for parameter in parameters}
    unknown = sorted(set(texts) - set(known))
    problems = [
        f"{strategy} has no parameter {name[:64]!r}{_suggest(name[:64], known)}"
        for name in unknown[:_PROBLEMS_MAX]
    ]
    if len(unknown) > _PROBLEMS_MAX:
        problems.append(f"and {len(unknown) - _PROBLEMS_MAX} more that it does not have")
    profile = texts.get("profile", PAPER) if "profile" in known else PAPER
    values: dict[str, Value] = {}
    for parameter in parameters:
        text = texts.get(parameter.name)
        if text is not None and parameter.profile not in (None, profile):
            problems.append(f"{parameter.name} only means something with profile {parameter.profile}")
            continue
        try:
            default = parameter.default_in(profile)
            values[parameter.name] = parameter.parse(default if text is None else text, default=default)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ParameterError("; ".join(problems) + ".", hint=_settable(strategy, parameters))
    return values


def _settable(strategy: str, parameters: Sequence[Parameter]) -> str:
    """Return the remedy for a wrong parameter: everything that can be set, and to what."""
    known = ", ".join(f"{parameter.name} ({parameter.values()})" for parameter in parameters)
    return f"{strategy} takes: {known}." if known else f"{strategy} takes no parameters."


def normalise_parameters(
    strategy: str, parameters: Sequence[Parameter], texts: Mapping[str, str]
) -> dict[str, str]:
    """Return the given parameters, sorted by name, each in its one canonical spelling.

    Raises:
        ParameterError: As :func:`validate_parameters`.
    """
    values = validate_parameters(strategy, parameters, texts)
    return {name: spell(values[name]) for name in sorted(texts)}


def spell(value: Value) -> str:
    """Return the one canonical spelling of a value."""
    if isinstance(value, Table):
        rows = [f"{row.selector}={spell(row.value)}" for row in value.rows]
        return ";".join([*rows, spell(value.default)])
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Fraction):
        return _spell_decimal(value)
    return str(value)


def _spell_decimal(value: Fraction) -> str:
    """Return a finite decimal without exponent or trailing zeros. Every parsed value is one."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    units = abs(int(value * 10**digits))
    whole, fraction = divmod(units, 10**digits)
    text = f"{whole}.{fraction:0{digits}d}" if digits else str(whole)
    return f"-{text}" if value < 0 else text


def _suggest(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
