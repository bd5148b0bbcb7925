"""Whether this process has but one thread, so that workers may be copies of it. Imports next to nothing."""

from __future__ import annotations

import os
from typing import Final

ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Of linear algebra: there is a worker per core, and some strategies' bits depend on it."""


def be_single() -> None:
    """Keep this process at one thread, so that its workers may be copies; before anything imports numpy."""
    os.environ.update(ONE_THREAD)


def is_single() -> bool:
    """Tell whether this process has one thread, the C libraries' included, and would go on so in a copy."""
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False
