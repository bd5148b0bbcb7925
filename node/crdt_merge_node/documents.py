"""The JSON documents that ``--json`` prints and the HTTP server answers: one shape, made in one place.

A document is an object with a ``schema`` such as ``status/1`` and the fields of a value of ``control.model``.
``cli/JSON.md`` describes them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from crdt_merge_protocol.errors import CrdtMergeError

WEIGHT_ONE: Final = 1 << 32
_WEIGHTS: Final = frozenset({"weight", "weight_cap"})


def document(schema: str, value: Any = None, *, event: str | None = None, **more: Any) -> dict[str, Any]:
    """Return ``schema``, ``event`` if there is one, the fields of ``value``, and ``more``."""
    kind = {} if event is None else {"event": event}
    return {"schema": schema, **kind, **(plain(value) if value is not None else {}), **plain(more)}


def error_document(error: CrdtMergeError) -> dict[str, Any]:
    """Return what a program is told of a failure: ``error/1``."""
    return document(
        "error/1",
        code=error.code,
        message=error.message,
        hint=error.hint,
        exit=error.exit_code,
        problems=list(getattr(error, "problems", ())),
    )


def plain(value: Any) -> Any:
    """Return what JSON can hold: dataclasses as objects, weights as numbers instead of units of 2^-32."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain_field(name, item) for name, item in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _plain_field(name: str, value: Any) -> Any:
    return value / WEIGHT_ONE if name in _WEIGHTS and isinstance(value, int) else plain(value)
