"""The matrix: an entry for each strategy and size, measured in processes of their own, one per core.

Every number is measured at the size it stands under. An entry that would take too long, by the strategy's
own estimate of a single merge or by what its first merge took, is skipped and says so; one that is refused
has failed and says why.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, Literal

from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.strategies import registry

from . import raw, replicas
from .cases import CONTRIBUTIONS_MIN, contributions_for, seconds, takes_base, terms
from .models import Gap, Models, size_of
from .raw import Operator, Raw
from .replicas import Group, Through

SIZES: Final = ("4x4", "128x128", "checkpoint")
SECONDS_MAX: Final = 120.0
"""CPU time that one entry may be estimated to take."""
RAW_LAWS: Final = ("commutative", "associative", "idempotent")
Status = Literal["measured", "skipped: cost", "failed"]


class _TooCostlyError(Exception):
    """The first merge took so long that all of them would take too long."""

    def __init__(self, first_s: float, all_s: float) -> None:
        super().__init__(f"about {all_s:,.0f} s, for the first merge took {first_s:,.1f} s")
        self.all_s = all_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One strategy at one size."""

    strategy: str
    size: str
    is_extra: bool
    """Not one of the 26 of the paper."""
    status: Status
    reason: str = ""
    """Why it was skipped or failed."""
    undefined: str = ""
    """Why the strategy is no operator on two models, if it is none: nothing raw is measured then."""
    raw: Raw | None = None
    through: Through | None = None
    estimate_s: float
    took_s: float = 0.0
    """CPU seconds."""

    def kept(self, law: str) -> bool:
        """Tell whether the raw operator keeps a law, but for rounding."""
        return self.raw is not None and getattr(self.raw, law).verdict != "broken"

    @property
    def is_success(self) -> bool:
        """Whether nothing speaks against the strategy: all laws hold through the state, or it was skipped."""
        return self.status == "skipped: cost" or (self.through is not None and self.through.is_success)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """All entries, by size, then in the order of the registry."""

    seed: int
    sizes: tuple[str, ...]
    strategies: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def is_success(self) -> bool:
        """Whether every strategy keeps every law through the state, at one size at least."""
        return all(entry.is_success for entry in self.entries) and all(
            any(entry.through is not None for entry in self.of(name)) for name in self.strategies
        )

    def of(self, strategy: str) -> tuple[Entry, ...]:
        """Return the entries of a strategy, by size."""
        return tuple(entry for entry in self.entries if entry.strategy == strategy)

    def counts(self, *, is_paper_only: bool = False) -> dict[str, int]:
        """Return how many strategies keep what at every size measured; and how many there are.

        Raw laws count as kept if they are broken by rounding only.

        Args:
            is_paper_only: Leave out those that are not among the 26 of the paper.
        """
        names = [name for name in self.strategies if not (is_paper_only and registry.get(name).is_extra)]
        measured = {name: [e for e in self.of(name) if e.status == "measured"] for name in names}
        defined = {
            name: entries for name, entries in measured.items() if entries and all(e.raw for e in entries)
        }
        counts = {"strategies": len(names), "raw defined": len(defined)}
        for law in RAW_LAWS:
            counts[f"raw {law}"] = sum(all(e.kept(law) for e in entries) for entries in defined.values())
        counts["raw all laws"] = sum(
            all(e.kept(law) for e in entries for law in RAW_LAWS) for entries in defined.values()
        )
        counts["raw replicas agree"] = sum(
            all(e.kept("replicas") for e in entries) for entries in defined.values()
        )
        counts["state all laws"] = sum(
            bool(entries) and all(e.through is not None and e.through.is_success for e in entries)
            for entries in measured.values()
        )
        return counts

    def worst(self, strategy: str, law: str) -> Gap | None:
        """Return the greatest gap of a raw operator from a law over all sizes; None if it is none."""
        gaps = [getattr(entry.raw, law) for entry in self.of(strategy) if entry.raw is not None]
        return max(gaps, key=lambda found: (not found.is_bitwise, found.relative), default=None)


def run(
    strategies: Sequence[str] = (),
    sizes: Sequence[str] = SIZES,
    *,
    seed: int = 1,
    jobs: int | None = None,
    seconds_max: float = SECONDS_MAX,
) -> Iterator[Entry | Matrix]:
    """Yield entries as they are done, and at the end all of them in order.

    Args:
        strategies: Ids or aliases; none: all.
        sizes: As :func:`~.models.size_of` takes them.
        jobs: Processes; None: one per core, 1: none but this.
        seconds_max: Skip what is estimated to take longer on one core.

    Raises:
        ConfigError: No such size.
        ParameterError: No such strategy.
    """
    names = tuple(dict.fromkeys(registry.get(name).id for name in strategies)) or registry.names()
    sizes = tuple(dict.fromkeys(size_of(size).name for size in sizes))
    # The large ones first: then the end of the work is cut fine enough for all cores.
    work = [(name, size) for size in sorted(sizes, key=lambda s: -size_of(s).numel) for name in names]
    done = []
    for entry in _entries(work, partial(measure, seed=seed, seconds_max=seconds_max), jobs):
        done.append(entry)
        yield entry
    rank = {(name, size): at for at, (size, name) in enumerate((s, n) for s in sizes for n in names)}
    done.sort(key=lambda entry: rank[entry.strategy, entry.size])
    yield Matrix(seed=seed, sizes=sizes, strategies=names, entries=tuple(done))


def _entries(work: Sequence[tuple[str, str]], one: partial[Entry], jobs: int | None) -> Iterator[Entry]:
    workers = min(jobs or os.cpu_count() or 1, len(work))
    if workers <= 1:
        yield from (one(name, size) for name, size in work)
        return
    # Spawned: a fork would carry the threads' locks of whoever calls.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        try:
            for future in as_completed([pool.submit(one, name, size) for name, size in work]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def measure(name: str, size: str, *, seed: int, seconds_max: float) -> Entry:
    """Return the entry of a strategy at a size."""
    strategy = registry.get(name)
    models = _models(size, seed)
    count = contributions_for(strategy)
    pair, whole = terms(strategy, 2), terms(strategy, count)
    known = [models[number] for number in range(count)]
    once = seconds(strategy, known, whole.roles)
    merges = replicas.REPLICAS * once
    if pair.unmet is None:
        merges += raw.MERGES * seconds(strategy, known[:2], pair.roles)
    entry = partial(Entry, strategy=name, size=size, is_extra=strategy.is_extra, undefined=pair.unmet or "")
    # Estimates err by a factor of several either way, so what may be affordable is tried.
    if once > seconds_max:
        reason = f"about {merges:,.0f} s by the strategy's own estimate"
        return entry(status="skipped: cost", reason=reason, estimate_s=merges)

    def afford(first_s: float) -> None:
        """Stop if eleven merges of two and three of all would take too long."""
        all_s = first_s * (raw.MERGES + replicas.REPLICAS * count / 2)
        if all_s > seconds_max:
            raise _TooCostlyError(first_s, all_s)

    began = time.process_time()
    try:
        operator = Operator(strategy, models.base if takes_base(strategy) else None, pair.roles)
        found = None if pair.unmet else raw.measure(operator, *known[:CONTRIBUTIONS_MIN], afford=afford)
        through = replicas.measure(Group(strategy, models, count, whole.roles))
    except _TooCostlyError as error:
        return entry(
            status="skipped: cost",
            reason=str(error),
            estimate_s=error.all_s,
            took_s=time.process_time() - began,
        )
    except CrdtMergeError as error:
        took_s = time.process_time() - began
        return entry(status="failed", reason=str(error), estimate_s=merges, took_s=took_s)
    took_s = time.process_time() - began
    return entry(status="measured", raw=found, through=through, estimate_s=merges, took_s=took_s)


@cache
def _models(size: str, seed: int) -> Models:
    """Return the models of a size; a process draws them once."""
    return Models(size_of(size), seed)
