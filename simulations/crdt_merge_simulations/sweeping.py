"""Many seeds of one scenario, on all cores; runs that fail alike are reported once.

Each seed is a run of its own in a process of its own, so the answer does not depend on how many there are.
With ``--ray ADDRESS`` the seeds are spread over a Ray cluster instead, which must have this package
installed; ``ray`` is an extra (``pip install 'crdt-merge-node[ray]'``) and imported only here.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from crdt_merge_node.errors import ConfigError

from .failures import failures, signatures
from .plan import Scenario
from .result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One seed, in a few words."""

    seed: int
    is_success: bool
    failures: Mapping[str, str]
    """First line of each violated invariant."""
    sometimes: Mapping[str, int]
    converged_after_s: float | None
    operations: int
    bytes_sent: int
    events: int
    wall_s: float
    trace: str


@dataclass(slots=True)
class Tally:
    """What a sweep found."""

    runs: int = 0
    failed: int = 0
    causes: dict[str, list[int]] = field(default_factory=dict)
    """Seeds by signature of the failure, in ascending order."""
    sometimes: dict[str, int] = field(default_factory=dict)
    """In how many runs a rare thing happened."""
    converged_s: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one seed."""
        self.runs += 1
        self.failed += not outcome.is_success
        for cause in signatures(outcome.failures):
            self.causes[cause] = sorted([*self.causes.get(cause, []), outcome.seed])
        for name, count in outcome.sometimes.items():
            self.sometimes[name] = self.sometimes.get(name, 0) + (count > 0)
        if outcome.converged_after_s is not None:
            self.converged_s.append(outcome.converged_after_s)

    @property
    def blind_spots(self) -> Sequence[str]:
        """Rare things that were looked for and never happened: the sweep says nothing about them."""
        return sorted(name for name, count in self.sometimes.items() if not count)


def run_seed(scenario: Scenario, seed: int) -> Outcome:
    """Plan and run one seed."""
    from .planning import make_plan
    from .worlds import run

    return outcome_of(run(make_plan(scenario, seed)))


def outcome_of(result: Result) -> Outcome:
    """Return the few words about a result."""
    return Outcome(
        seed=result.seed,
        is_success=result.is_success,
        failures=dict(failures(result)),
        sometimes=dict(result.sometimes),
        converged_after_s=result.converged_after_s,
        operations=result.operations,
        bytes_sent=sum(result.bytes_sent),
        events=result.events,
        wall_s=result.wall_s,
        trace=result.trace,
    )


def sweep(
    scenario: Scenario,
    seeds: Iterable[int],
    *,
    jobs: int | None = None,
    run_one: Callable[[Scenario, int], Outcome] = run_seed,
) -> Iterator[Outcome]:
    """Yield the outcome of each seed as it comes. ``jobs``: processes; None: one per core, 1: none but this.

    ``run_one`` must be a function of a module if there is more than one process.
    """
    if (jobs or os.cpu_count() or 1) == 1:
        yield from (run_one(scenario, seed) for seed in seeds)
        return
    # Spawned: a fork would carry the threads' locks of whoever calls.
    context = multiprocessing.get_context("spawn")
    remaining = iter(seeds)
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        workers = jobs or os.cpu_count() or 1
        running: set[Future[Outcome]] = {
            pool.submit(run_one, scenario, seed) for seed in islice(remaining, 2 * workers)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(run_one, scenario, seed) for seed in islice(remaining, len(done))}
            yield from sorted((future.result() for future in done), key=lambda outcome: outcome.seed)


def sweep_on_ray(scenario: Scenario, seeds: Iterable[int], address: str) -> Iterator[Outcome]:
    """Yield the outcome of each seed, run on an existing Ray cluster.

    Raises:
        ConfigError: Ray is not installed here.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "--ray needs the package ray, which is not installed.",
            hint="pip install 'crdt-merge-node[ray]', or leave --ray out to use the cores of this machine.",
        )
    ray: Any = importlib.import_module("ray")
    ray.init(address=address)
    try:
        remote = ray.remote(run_seed)
        running = [remote.remote(scenario, seed) for seed in seeds]
        while running:
            done, running = ray.wait(running)
            yield from ray.get(done)
    finally:
        ray.shutdown()
