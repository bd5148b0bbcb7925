"""The hunt: run a scenario with a bug planted, seed after seed, until an invariant says so."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

from crdt_merge_simulations.failures import failures
from crdt_merge_simulations.planning import make_plan
from crdt_merge_simulations.worlds import run

from .bug import Bug, load_bug

SEEDS_MAX: Final = 200
SEEDS_ALONE: Final = 2
"""Most bugs are caught by then, and starting processes costs more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One seed."""

    seed: int
    found: Mapping[str, str]
    """First line of each violated invariant."""
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch:
    """What a hunt came to."""

    bug: Bug
    seed: int | None
    """None: not caught."""
    found: Mapping[str, str]
    """What was violated by that seed."""
    false_alarms: Mapping[str, str]
    """What the same seed violates without the bug."""
    cpu_s: float
    """Of all attempts, the one without the bug included."""

    @property
    def is_good(self) -> bool:
        """Whether the bug was caught, and nothing but the bug."""
        return self.seed is not None and not self.false_alarms


def attempt(name: str, seed: int, *, is_planted: bool = True) -> Attempt:
    """Run one seed of a bug's scenario, with the bug or without."""
    bug = load_bug(name)
    plan = make_plan(bug.load_scenario(), seed)
    began = time.process_time()
    if is_planted:
        with bug.planted():
            result = run(plan)
    else:
        result = run(plan)
    return Attempt(seed=seed, found=dict(failures(result)), cpu_s=time.process_time() - began)


def hunt(name: str, *, seeds_max: int = SEEDS_MAX, jobs: int = 2) -> Catch:
    """Return the smallest seed that catches a bug, and what the code without it makes of the same seed."""
    bug, cpu_s = load_bug(name), 0.0
    for one in _attempts(name, seeds_max, jobs):
        cpu_s += one.cpu_s
        if bug.invariants & one.found.keys():
            clean = attempt(name, one.seed, is_planted=False)
            return Catch(
                bug=bug, seed=one.seed, found=one.found, false_alarms=clean.found, cpu_s=cpu_s + clean.cpu_s
            )
    return Catch(bug=bug, seed=None, found={}, false_alarms={}, cpu_s=cpu_s)


def _attempts(name: str, seeds_max: int, jobs: int) -> Iterator[Attempt]:
    """Yield the attempts in the order of their seeds."""
    alone = seeds_max if jobs == 1 else min(SEEDS_ALONE, seeds_max)
    for seed in range(1, alone + 1):
        yield attempt(name, seed)
    if alone == seeds_max:
        return
    # Spawned: a fork would carry the threads' locks of whoever calls.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for first in range(alone + 1, seeds_max + 1, jobs):
            seeds = range(first, min(first + jobs, seeds_max + 1))
            yield from pool.map(attempt, [name] * len(seeds), seeds)
