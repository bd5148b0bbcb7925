"""Ids in the keys of small facts in the store, which damage may have changed (SCENARIOS T52)."""

from __future__ import annotations

from typing import Final

ID_DIGITS: Final = 64


def read_id(text: str) -> bytes | None:
    """Return the id that 64 hex digits stand for; None if they are none, so that a start goes on without."""
    if len(text) != ID_DIGITS:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
