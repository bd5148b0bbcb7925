"""The stages: what each tries, cut into steps that a run may be interrupted between.

A step is a command with an environment; it has passed if it exits with 0. Every stage fits its half hour on
two cores. Seeds are drawn fresh for every run of a stage from the one that is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .record import FOLDER

ROOT: Final = Path(__file__).parents[2]
PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
EXAMPLES_TIMES: Final = 20
FRAMES, FRAMES_PER_STEP = 200_000, 20_000
GARBAGE_TIMES, GARBAGE_STEPS, GARBAGE_SOCKETS = 40, 4, 10_000
KILLS, KILLS_PER_STEP = 200, 20
SEEDS, SEEDS_PER_STEP = 500, 50
ORACLE_SEEDS: Final = 3
ENGINE_TRACES, ENGINE_TRACES_PER_STEP = 200, 10
DAEMON_TRACES, DAEMON_TRACES_PER_STEP = 120, 5
LAWS_SIZES: Final = ("4x4", "128x128", "checkpoint")
LAWS_SECONDS_MAX: Final = 600
"""CPU time of one strategy at one size; what would take longer is skipped and the step says so."""
CORE_TYPES: Final = ("Prescott", "Core2", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")
THREADS: Final = (1, 2, 4, 8)
EMULATED_CORES: Final = ("max", "cortex-a53", "neoverse-n1", "a64fx")
"""With and without SVE and half precision; each has its own kernels in OpenBLAS."""
SIMD_LEVELS: Final = (("AVX512_SPR",), ("AVX512_ICL",), ("X86_V4",), ("X86_V3",))
"""Features of numpy above its baseline, highest first; a level switches off those up to it."""
DIGEST_TESTS: Final = (
    "tests/unit/strategies/test_determinism.py::test_the_digest_is_the_one_of_every_release",
    "tests/unit/strategies/test_determinism_of_every.py",
)
"""Pinned digests, and those of every strategy in the step's setting against two others."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """A named list of steps."""

    name: str
    doc: str
    steps: Callable[[int], list[Step]]
    """From the seed of the run."""


def _properties(seed: int) -> list[Step]:
    files = sorted(
        path
        for folder in ("property", "unit")
        for path in (ROOT / "tests" / folder).rglob("test_*.py")
        if "support.profile" in path.read_text()
    )
    return [
        Step(
            path.stem,
            (*PYTEST, f"--hypothesis-seed={seed}", str(path.relative_to(ROOT))),
            {"CRDT_MERGE_TEST_EXAMPLES": str(EXAMPLES_TIMES)},
        )
        for path in files
    ]


def _frames(seed: int) -> list[Step]:
    test = (*PYTEST, "tests/unit/protocol/test_hostile_frames.py")
    return [
        Step(
            f"frames-{number}",
            test,
            {
                "CRDT_MERGE_TEST_FRAMES": str(FRAMES_PER_STEP),
                "CRDT_MERGE_TEST_SEED": str(seed + 10 * number),
            },
        )
        for number in range(FRAMES // FRAMES_PER_STEP)
    ]


def _garbage(seed: int) -> list[Step]:
    test = (*PYTEST, "tests/bad_inputs/test_garbage.py")
    steps = [
        Step(
            f"bytes-{number}",
            (*test, f"--hypothesis-seed={seed + number}"),
            {"CRDT_MERGE_TEST_EXAMPLES": str(GARBAGE_TIMES)},
        )
        for number in range(GARBAGE_STEPS)
    ]
    return [
        *steps,
        Step(
            "sockets",
            (*PYTEST, "tests/bad_inputs/test_sockets.py"),
            {"CRDT_MERGE_TEST_SOCKETS": str(GARBAGE_SOCKETS)},
        ),
        Step(
            "pages-and-frames",
            (*PYTEST, "tests/bad_inputs/test_database.py"),
            {"CRDT_MERGE_TEST_DAMAGE": "1"},
        ),
    ]


def _kills(seed: int) -> list[Step]:
    test = (*PYTEST, "tests/e2e/test_kills.py")
    return [
        Step(
            f"kills-{number}",
            test,
            {"CRDT_MERGE_TEST_KILLS": str(KILLS_PER_STEP), "CRDT_MERGE_TEST_SEED": str(seed + number)},
        )
        for number in range(KILLS // KILLS_PER_STEP)
    ]


def _determinism(_seed: int) -> list[Step]:
    found = _simd_features()
    levels = [
        [feature for (feature,) in SIMD_LEVELS[: level + 1] if feature in found]
        for level in range(-1, len(SIMD_LEVELS))
    ]
    distinct = sorted({tuple(level) for level in levels}, key=len)
    return [
        Step(
            f"{core}-{threads}-{len(disabled)}",
            (*PYTEST, *DIGEST_TESTS),
            {"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": str(threads)}
            | ({"NPY_DISABLE_CPU_FEATURES": " ".join(disabled)} if disabled else {}),
        )
        for core in CORE_TYPES
        for threads in THREADS
        for disabled in distinct
    ]


def _aarch64(_seed: int) -> list[Step]:
    run = (sys.executable, "-m", "tests.aarch64")
    parts = [("prepare", "max"), ("pinned", "max"), ("formats", "max"), ("files", "max")]
    parts += [("strategies", core) for core in EMULATED_CORES]
    return [Step(f"{part}-{core}", (*run, part), {"QEMU_CPU": core}) for part, core in parts]


def _simd_features() -> set[str]:
    """Return what this host has above numpy's baseline; numpy warns about switching off anything else."""
    import numpy as np

    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return set(simd.get("found", ()))


def _oracles(seed: int) -> list[Step]:
    return [
        Step(f"seed {drawn}", (sys.executable, "-m", "tests.oracles", str(drawn)))
        for drawn in range(seed % 1_000_000, seed % 1_000_000 + ORACLE_SEEDS)
    ]


def _simulation(seed: int) -> list[Step]:
    run = (sys.executable, "-m", "tests.nightly.simulate")
    return [
        Step(f"seeds-{first}", (*run, str(first), str(SEEDS_PER_STEP)))
        for first in range(seed, seed + SEEDS, SEEDS_PER_STEP)
    ]


def _ten_thousand(seed: int) -> list[Step]:
    run = (sys.executable, "-m", "tests.nightly.crowd", "ten-thousand", str(seed))
    trace = str(FOLDER / f"ten-thousand-{seed}.trace")
    figures = (sys.executable, "-m", "crdt_merge_simulations.engine_figures")
    return [
        Step("run", (*run, trace)),
        Step("again", (*run, trace, "again"), {"PYTHONHASHSEED": "1"}),
        Step("crash", (*figures, "crash", "--nodes", "10000", "--seed", str(seed))),
        Step("spread", (*figures, "spread", "--nodes", "10000", "--seed", str(seed), "--operations", "20")),
    ]


def _planted(_seed: int) -> list[Step]:
    names = sorted(path.stem for path in (ROOT / "tests/planted/bugs").glob("*.toml"))
    return [Step(name, (sys.executable, "-m", "tests.planted", name)) for name in names]


def _laws(seed: int) -> list[Step]:
    run = (sys.executable, "-c", "from crdt_merge_simulations.cli import main; main()", "laws")
    return [
        Step(size, (*run, "--sizes", size, "--seed", str(seed), "--seconds-max", str(LAWS_SECONDS_MAX)))
        for size in LAWS_SIZES
    ]


def _traces(seed: int) -> list[Step]:
    run = (sys.executable, "-m", "tests.nightly.traces")
    parts = (
        ("swarm-10", ENGINE_TRACES, ENGINE_TRACES_PER_STEP),
        ("daemons-5", DAEMON_TRACES, DAEMON_TRACES_PER_STEP),
    )
    return [
        Step(f"{scenario}-{first}", (*run, scenario, str(first), str(per_step)))
        for scenario, count, per_step in parts
        for first in range(seed, seed + count, per_step)
    ]


def _large_merge(_seed: int) -> list[Step]:
    return [Step("ties", (sys.executable, "-m", "tests.nightly.large_merge"))]


def _soak(seed: int) -> list[Step]:
    return [Step("five", (sys.executable, "-m", "tests.nightly.soak", "1620", str(seed)))]


def _browser(_seed: int) -> list[Step]:
    return [Step("chromium", (*PYTEST, "-rs", "tests/browser/test_dashboard.py"))]


def _install(_seed: int) -> list[Step]:
    test = (*PYTEST, "tests/e2e/test_installed.py")
    return [Step("from-registries", test, {"CRDT_MERGE_TEST_INSTALL": "registries"})]


def _big(_seed: int) -> list[Step]:
    run = (sys.executable, "-m", "tests.nightly.big")
    return [
        Step("daemons", run),
        Step("btrfs", (*run, "reflink", "btrfs")),
        Step("xfs", (*run, "reflink", "xfs")),
    ]


STAGES: Final = (
    Stage(
        "properties", f"every property on {EXAMPLES_TIMES} times as many examples, fresh ones", _properties
    ),
    Stage("frames", f"{FRAMES:,} damaged frames through the decoder and into an engine (S12)", _frames),
    Stage(
        "garbage",
        f"{GARBAGE_TIMES} times as much garbage, {GARBAGE_SOCKETS:,} sockets, a database torn at every page",
        _garbage,
    ),
    Stage("kills", f"{KILLS} SIGKILLs of a daemon under load", _kills),
    Stage("determinism", "one output digest over BLAS kernels, threads and SIMD levels (S13)", _determinism),
    Stage("aarch64", "the same digests from an emulated aarch64 machine", _aarch64),
    Stage(
        "ten-thousand",
        "ten thousand engines from nothing to converged, twice with one trace; figures",
        _ten_thousand,
    ),
    Stage(
        "traces",
        f"{ENGINE_TRACES} seeds of engines and {DAEMON_TRACES} of daemons, twice each with other hash seeds",
        _traces,
    ),
    Stage("planted", "every planted bug is caught within 200 seeds, and nothing without it", _planted),
    Stage("oracles", "the same merges by mergekit, PEFT, fusion_bench and scipy", _oracles),
    Stage("laws", "every strategy keeps every law of a CRDT through the state, at three sizes", _laws),
    Stage("simulation", f"{SEEDS} fresh seeds of ten engines in virtual time", _simulation),
    Stage(
        "large-merge",
        "two large models and their base by TIES within a gibibyte (B8; CRDT_MERGE_TEST_LARGE_MIB each)",
        _large_merge,
    ),
    Stage(
        "big",
        "a large sharded checkpoint through two daemons (B8, C5; CRDT_MERGE_TEST_BIG_MIB); reflinks",
        _big,
    ),
    Stage(
        "install", "the wheel and its dependencies into a bare environment, in the unit's sandbox", _install
    ),
    Stage(
        "browser", "the dashboard of real daemons in Chromium (needs it, and the extra `browser`)", _browser
    ),
    Stage("soak", "five daemons at work for half an hour hold no more at its end than in its middle", _soak),
)
