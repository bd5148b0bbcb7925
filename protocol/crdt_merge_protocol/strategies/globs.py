"""Shell patterns over the names of tensors: those of a policy's tables and of artefacts' rows.

Patterns come from strangers and are asked about every tensor of every contribution again and again, so each
is translated once. The standard library's own memory holds 256; a table with more would be translated anew
for every block, a hundred times dearer than the question.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache
from typing import Final

_WILD: Final = frozenset("*?[")
_REMEMBERED_MAX: Final = 1 << 12
"""As many as a table may have rows. Of the longest, these take some 20 MB."""


def is_wild(pattern: str) -> bool:
    """Tell whether a pattern can fit more than the name that it spells."""
    return not _WILD.isdisjoint(pattern)


def wildcards(pattern: str) -> int:
    """Return how many characters of a pattern begin a wildcard: what it costs to try grows with them."""
    return sum(character in _WILD for character in pattern)


def fits(pattern: str, name: str) -> bool:
    """Tell whether a name fits a pattern, upper and lower case told apart, as ``fnmatchcase`` does."""
    if not is_wild(pattern):
        return pattern == name
    return _compiled(pattern).match(name) is not None


@lru_cache(maxsize=_REMEMBERED_MAX)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
