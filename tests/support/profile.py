"""How many examples a property is tried on: few and the same ones, or many fresh ones at night."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

TIMES: Final = int(os.environ.get("CRDT_MERGE_TEST_EXAMPLES", "0"))
"""0: fixed examples. More: so many times as many, drawn from ``pytest --hypothesis-seed``."""


def examples(count: int) -> settings:
    """Return the settings of a property that ``count`` examples test in a minute of all tests."""
    if not TIMES:
        return settings(max_examples=count, derandomize=True, deadline=None)
    return settings(max_examples=count * TIMES, deadline=None, database=None, print_blob=True)
