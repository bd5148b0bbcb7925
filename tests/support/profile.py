"""How many examples a property is tried on: few and the same ones, or many fresh ones at night."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

TIMES: Final = int(os.environ.get("CRDT_MERGE_TEST_EXAMPLES", "0"))
"""0: fixed examples. More: so many times as many, drawn from ``pytest --hypothesis-seed``."""


BY_NO_CLOCK: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def examples(count: int) -> settings:
    """Return the settings of a property that ``count`` examples test in a minute of all tests."""
    if not TIMES:
        return settings(BY_NO_CLOCK, max_examples=count, derandomize=True)
    return settings(BY_NO_CLOCK, max_examples=count * TIMES, database=None, print_blob=True)
