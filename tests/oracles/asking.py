"""Handing cases to a script in a scratch environment, and its answers back."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .environments import python_of


def ask(
    environment: str,
    script: str,
    cases: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, npt.NDArray[Any]],
) -> dict[str, npt.NDArray[Any]]:
    """Return what a script answers, by case id.

    Args:
        environment: A key of ``environments.REQUIREMENTS``.
        script: A file beside this one; it gets the paths of a question and an answer, both npz.
        cases: JSON, under ``cases`` of the question.
        arrays: The rest of the question.
    """
    with tempfile.TemporaryDirectory() as name:
        question, answer = Path(name) / "question.npz", Path(name) / "answer.npz"
        np.savez(question, cases=json.dumps(cases), **arrays)  # type: ignore[arg-type]  # text beside arrays
        path = Path(__file__).with_name(script)
        command = [str(python_of(environment)), str(path), str(question), str(answer)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # Libraries chat there.
        with np.load(answer) as found:
            return {key: found[key] for key in found.files}
