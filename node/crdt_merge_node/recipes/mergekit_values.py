"""Values of a mergekit configuration as tables: what differs by model, by part of a name, and by layer.

A list of numbers is a *gradient*, interpolated over the layers; its first value also holds for what is of no
layer, whether it comes before them (embeddings) or after (the final norm and the head), and a single layer
has the last. A list of mappings has one value per ``filter``, a part of the tensor's name, and the first that
matches counts; where none does, what the configuration says for all models holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.limits import POLICY_TEXT_CHARS_MAX
from crdt_merge_protocol.strategies.parameters import Parameter, Table

DIGEST_DIGITS: Final = 12
"""Hex digits by which a table names a contribution."""
_PLACES: Final = Decimal(1).scaleb(-12)
_LAYER: Final = re.compile(r"\.(\d{1,5})\.")
_TABLE: Final = Parameter(
    name="table", type="decimal", default="1", per=frozenset({"tensor", "contribution"})
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for the tensors whose names hold a text; empty: all."""

    part: str
    values: tuple[str, ...]
    """One, or a gradient over the layers."""


class Layout:
    """The tensors by name, and which layer each is of."""

    def __init__(self, tensors: Sequence[str]) -> None:
        self.tensors = tuple(tensors)
        self.layers = 1 + max((layer for name in tensors if (layer := layer_of(name)) is not None), default=0)

    def value(self, rules: Sequence[Rule], tensor: str) -> str | None:
        """Return what the configuration says for a tensor; None: nothing."""
        for rule in rules:
            if rule.part in tensor:
                return interpolate(rule.values, self.position(tensor))
        return None

    def position(self, tensor: str) -> Fraction:
        """Return where in the stack of layers a tensor is, 0 to 1; 0 if it is of none."""
        layer = layer_of(tensor)
        return Fraction(0) if layer is None else self._share(layer)

    def rows(self, rules: Sequence[Rule], digest: str) -> list[str]:
        """Return the rows of a table that says the same; a digest restricts them to one contribution.

        Raises:
            ParameterError: A gradient over layers, and no file has told how many there are.
        """
        mark = f"#{digest}" if digest else ""
        rows = []
        for rule in rules:
            glob = f"*{rule.part}*" if rule.part else "*"
            if len(rule.values) > 1:
                if not self.tensors:
                    raise ParameterError(
                        "A value that is a list runs over the layers, which are not known.",
                        hint="Name a file that has the tensors: --like.",
                    )
                for layer in range(self.layers):
                    inner = f"*.{layer}.*{rule.part}*" if rule.part else f"*.{layer}.*"
                    rows.append(f"{inner}{mark}={interpolate(rule.values, self._share(layer))}")
            rows.append(f"{glob}{mark}={rule.values[0]}")
        return rows

    def _share(self, layer: int) -> Fraction:
        return Fraction(layer, self.layers - 1) if self.layers > 1 else Fraction(1)


def layer_of(tensor: str) -> int | None:
    """Return the number of the layer that a tensor belongs to: the first number among its name's parts."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


def interpolate(values: Sequence[str], position: Fraction) -> str:
    """Return the value at a position of 0 to 1 along evenly spaced values, as decimal text of 12 places."""
    if len(values) == 1:
        return values[0]
    scaled = position * (len(values) - 1)
    left = min(int(scaled), len(values) - 2)
    part = scaled - left
    if part == 0:
        return values[left]
    value = Fraction(values[left]) * (1 - part) + Fraction(values[left + 1]) * part
    rounded = (Decimal(value.numerator) / Decimal(value.denominator)).quantize(_PLACES)
    return format(rounded.normalize(), "f")


def read_rules(name: str, *values: Any) -> list[Rule]:
    """Return what the values of a parameter mean: what a model says, then what holds where that says nothing.

    Args:
        name: Of the parameter.
        values: Each a scalar, a gradient, a list of filters, or None, from the one that counts most.

    Raises:
        ParameterError: One is none of them.
    """
    rules = [rule for value in values if value is not None for rule in _rules(name, value)]
    last = next((i for i, rule in enumerate(rules) if not rule.part), len(rules))
    return rules[: last + 1]


def _rules(name: str, value: Any) -> list[Rule]:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        rules = []
        for item in value:
            if set(item) - {"filter", "value"} or "value" not in item:
                raise ParameterError(
                    f"{name}: a conditional value is {{filter: ..., value: ...}}, not {item}."
                )
            part = str(item.get("filter") or "")
            rules.append(Rule("" if part == "*" else part, _numbers(name, item["value"])))
        return rules
    return [Rule("", _numbers(name, value))]


def _numbers(name: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ParameterError(f"{name} is an empty list.")
    return tuple(_text(name, item) for item in values)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    raise ParameterError(f"{name} is a finite number, true or false, not {value!r}.")


def say(name: str, layout: Layout, values: Sequence[Any], default: Any, digests: Sequence[str]) -> str:
    """Return the text of a parameter.

    Args:
        name: Of the parameter.
        layout: The tensors.
        values: What each model says of it; None: nothing.
        default: What holds where a model says nothing; None: nothing does.
        digests: Of the models.
    """
    every = [read_rules(name, value, default) for value in values]
    first = every[0]
    if first and all(rules == first for rules in every):
        if len(first) == 1 and not first[0].part and len(first[0].values) == 1:
            return _spell(name, first[0].values[0])
        rows = layout.rows(first, "")
        pairs = [(first, "")]
    else:
        rows, pairs = [], []
        for rules, digest in zip(every, digests, strict=True):
            if rules:
                rows += layout.rows(rules, digest[:DIGEST_DIGITS])
                pairs.append((rules, digest))
    text = ";".join(rows)
    if any("true" in row or "false" in row for row in rows):
        raise ParameterError(f"{name} differs between tensors or models, which is not supported.")
    _check_table(name, layout, text, pairs)
    return text


def _spell(name: str, value: str) -> str:
    """Return a value as the parameter here takes it."""
    if name == "rescale":
        return "l1" if value == "true" else "none"
    return value


def slerp_weights(
    layout: Layout, t: Any, models: Sequence[str], base: str | None, digests: Sequence[str]
) -> str:
    """Return the table of weights (1 - t, t) of the two models; the base is the end at t = 0.

    Raises:
        ParameterError: There are not two models with the base among them, or there is no ``t``.
    """
    if len(models) != 2 or base not in models:
        raise ParameterError("slerp takes two models, one of them base_model, and t for both.")
    if t is None:
        raise ParameterError("slerp needs the parameter t.")
    rules = read_rules("t", t)
    origin = models.index(base)
    ends: list[tuple[list[Rule], str]] = []
    for number, digest in enumerate(digests):
        mine = rules
        if number == origin:
            mine = [Rule(r.part, tuple(_complement(value) for value in r.values)) for r in rules]
        ends.append((mine, digest))
    text = ";".join(row for mine, digest in ends for row in layout.rows(mine, digest[:DIGEST_DIGITS]))
    _check_table("t", layout, text, ends)
    return text


def _complement(value: str) -> str:
    return format(Decimal(1) - Decimal(value), "f")


def _check_table(name: str, layout: Layout, text: str, pairs: Sequence[tuple[Sequence[Rule], str]]) -> None:
    """Refuse a table that does not say what the configuration says, or is too long for a policy."""
    if len(text) > POLICY_TEXT_CHARS_MAX:
        raise ParameterError(
            f"{name} needs {len(text)} characters as a table, {POLICY_TEXT_CHARS_MAX} are allowed.",
            hint="Use fewer filters or models with gradients.",
        )
    table = _TABLE.parse(text)
    assert isinstance(table, Table), "the text holds rows"
    for rules, digest in pairs:
        for tensor in layout.tensors:
            expected = layout.value(rules, tensor)
            if expected is not None and table.at(tensor, digest) != Fraction(expected):
                raise ParameterError(f"{name} for tensor {tensor} cannot be said as a table.")
