"""What the passes of a merge found of one tensor, as JSON and back.

A tensor that is taken over from an earlier merge is not shown to any pass, yet the account of the merge tells
of all tensors: thresholds, coefficients, warnings. So an account keeps, with a tensor, the part of the state
that stands under its index, and the next merge puts it into its own state before it writes the account.

States are made of dictionaries by tensor index, or (tensor index, ...), of sets of tensor indices, and of
dataclasses of such. Arrays are left out: they serve the merge of the tensor itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from .acceleration import Digits
from .distances import Verdict
from .selection import Selection
from .sphere import Arc

_CLASSES: Final = {cls.__name__: cls for cls in (Arc, Digits, Selection, Verdict)}
"""What values may be besides numbers, text and tuples of them. Nothing else is made from an account."""
_FLOAT: Final = "float"


def findings_of(state: Any, tensor_index: int) -> Any:
    """Return what a state holds of a tensor, JSON-able; None: nothing."""
    if isinstance(state, Mapping):
        found = [
            [list(_rest(key)), _written(value)]
            for key, value in sorted(state.items())
            if _index(key) == tensor_index and not _has_array(value)
        ]
        return found or None
    if _are_indices(state):
        return True if tensor_index in state else None
    if isinstance(state, tuple):
        parts = [findings_of(part, tensor_index) for part in state]
        return parts if any(part is not None for part in parts) else None
    if dataclasses.is_dataclass(state):
        values = {
            field.name: findings_of(getattr(state, field.name), tensor_index)
            for field in dataclasses.fields(state)
        }
        return {name: value for name, value in values.items() if value is not None} or None
    return None


def with_findings(state: Any, tensor_index: int, findings: Any) -> Any:
    """Return a state with what an earlier one held of a tensor.

    Args:
        state: Of the same strategy, after its passes.
        tensor_index: Of the tensor, which they were not shown.
        findings: What :func:`findings_of` returned.

    Raises:
        ValueError, TypeError, LookupError: It did not return that.
    """
    if findings is None:
        return state
    if isinstance(state, Mapping):
        entries = {(tensor_index, *rest) if rest else tensor_index: _read(value) for rest, value in findings}
        return {**state, **entries}
    if _are_indices(state):
        return type(state)(sorted({*state, tensor_index}))
    if isinstance(state, tuple):
        return tuple(
            with_findings(part, tensor_index, found) for part, found in zip(state, findings, strict=True)
        )
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        parts = {
            name: with_findings(getattr(state, name), tensor_index, value) for name, value in findings.items()
        }
        return dataclasses.replace(state, **parts)
    raise ValueError(f"nothing can be found in a {type(state).__name__}")


def _index(key: Any) -> int:
    return int(key[0] if isinstance(key, tuple) else key)


def _rest(key: Any) -> tuple[int, ...]:
    return key[1:] if isinstance(key, tuple) else ()


def _are_indices(state: Any) -> bool:
    return isinstance(state, tuple | frozenset) and all(isinstance(each, int) for each in state)


def _has_array(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_has_array, value))
    return isinstance(value, np.ndarray)


def _written(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: str(float(value))}
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    if type(value).__name__ in _CLASSES:
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return {type(value).__name__: _written(tuple(fields))}
    return value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_read, value))
    if isinstance(value, dict):
        ((name, inside),) = value.items()
        return float(inside) if name == _FLOAT else _CLASSES[name](*map(_read, inside))
    return value
