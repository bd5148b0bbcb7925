"""``python -m tests.aarch64 PART``: run one part on both machines and compare what they say, name by name.

``prepare`` only makes the environment, ``pinned`` runs the tests of pinned bits there. The variable
``QEMU_CPU`` names the core to emulate; numpy and OpenBLAS choose their code by it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .environment import ROOT, command, prepare, variables

PINNED: Final = (
    "tests/unit/strategies/test_determinism.py::test_the_digest_is_the_one_of_every_release",
    "tests/unit/strategies/test_determinism_of_every.py::test_the_digest_of_the_extras_is_the_one_of_every_release",
    "tests/unit/strategies/test_artefact_strategies.py::test_the_digest_is_the_one_of_every_release",
    "tests/unit/strategies/test_spectral.py::test_the_digest_is_the_one_of_every_release",
    "tests/unit/strategies/test_linear_algebra.py::test_the_digest_is_the_one_of_every_release",
    "tests/unit/strategies/test_exponential.py::test_the_bits_are_those_of_every_release",
)
PYTEST: Final = (
    "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={ROOT}", "-p", "no:cacheprovider", "-W", "error",
    "--import-mode=importlib",
)  # fmt: skip


def main(part: str) -> int:
    """Return 1 if anything differs."""
    prepare()
    if part == "prepare":
        return _run_there("-c", "import platform; print(platform.platform())")
    if part == "pinned":
        return _run_there(*PYTEST, *PINNED)
    return _compare(part)


def _run_here(*arguments: str) -> int:
    line, paths = [sys.executable, *arguments], {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.run(line, cwd=ROOT, env={**os.environ, **paths}, check=False).returncode


def _run_there(*arguments: str) -> int:
    environment = {**os.environ, **variables()}
    return subprocess.run(command(*arguments), cwd=ROOT, env=environment, check=False).returncode


def _compare(part: str) -> int:
    module = ("-m", "tests.aarch64.digests", part)
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "here"), Path(folder, "there")
        began = time.monotonic()
        status = _run_here(*module, str(here)) or _run_there(*module, str(there))
        if status:
            return status
        ours, theirs = (json.loads(path.read_text()) for path in (here, there))
    different = differences(ours, theirs)
    sys.stdout.writelines(f"{line}\n" for line in different)
    core = os.environ.get("QEMU_CPU", "max")
    sys.stdout.write(
        f"{part} on {core}: {len(ours) - len(different)} of {len(ours)} digests are equal, "
        f"{time.monotonic() - began:.0f} s\n"
    )
    return 1 if different else 0


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return a line for every name that the two do not say the same of."""
    return [
        f"{name}: {ours.get(name)} here, {theirs.get(name)} on aarch64"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
