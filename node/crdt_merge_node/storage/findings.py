"""What a check of a data directory found, and what could be done about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    DAMAGE = "damage"
    """Something is not what was stored, or is gone."""
    WARNING = "warning"
    """Nothing is lost, but somebody should see to it."""
    NOTE = "note"
    """Left by a crash, or merely worth knowing; the next start sees to it."""


Report = Callable[[int, int, str], None]
"""Hears (done, total, step): how far a check is."""


@dataclass(slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """``layout``, ``permission``, ``identity``, ``database``, ``group``, ``operation``, ``order``, ``root``,
    ``object``, ``blob``, ``orphan``, ``partial``, ``temporary`` or ``quarantine``."""
    level: Level
    subject: str
    """A path, or an id in hex."""
    message: str
    """What is wrong, as a clause."""
    fix: str
    """What a repair does, or a person can do."""
    repair: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    """Does it; None: only a person can."""
    is_repaired: bool = False


def nothing(_done_bytes: int, _total_bytes: int, _step: str) -> None:
    """Hear nothing of it."""
