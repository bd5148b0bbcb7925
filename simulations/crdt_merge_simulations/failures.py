"""What a failed run is known by: the invariants it violated, and in which words.

Shrinking keeps the first of them, sweeping counts runs that fail alike as one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from .result import Result

NOT_CONVERGED: Final = "convergence"
"""Stands for a run in which nothing was violated but the nodes never agreed."""
_PARTICULARS: Final = re.compile(r"\b[0-9a-f]*[0-9][0-9a-f]*\b|(?<=[a-z])[0-9]+|(?<=[0-9])\s?(?=[0-9])")
"""Numbers, ids and the numbers of nodes: what differs between two runs of one bug."""


def failures(result: Result) -> Mapping[str, str]:
    """Return the first line of each violated invariant by its id; empty if the run succeeded."""
    found = {
        check.id: check.violations[0].splitlines()[0] if check.violations[0] else ""
        for check in result.checks.values()
        if check.violations
    }
    if result.converged_after_s is None:
        found[NOT_CONVERGED] = "the nodes did not agree within the peace"
    return found


def first_failure(result: Result) -> str | None:
    """Return the id of what a run failed by first; None if it succeeded."""
    return next(iter(failures(result)), None)


def signature(invariant: str, line: str) -> str:
    """Return what runs that fail alike have in common: the claim and its words without the particulars."""
    return f"{invariant}: {_PARTICULARS.sub('…', line)}"


def signatures(found: Mapping[str, str]) -> Sequence[str]:
    """Return the signature of each failure of a run."""
    return [signature(invariant, line) for invariant, line in found.items()]
