"""Models with different vocabularies: giving one the tokens of another, so that they can be merged."""

from __future__ import annotations

from .aligning import Aligned, align_vocabulary
from .tokens import RowMap, read_map, read_vocabulary, row_map

__all__ = ["Aligned", "RowMap", "align_vocabulary", "read_map", "read_vocabulary", "row_map"]
