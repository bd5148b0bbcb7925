"""What has been done already, so that an interrupted night goes on where it stopped.

``.nightly/<stage>.json`` holds the version of the tree, the seed of the run and the steps that passed.
Another version begins anew. The output of every step is kept beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

FOLDER = Path(".nightly")


@dataclass(slots=True)
class Record:
    """One stage at one version."""

    stage: str
    version: str
    seed: int
    passed: dict[str, float] = field(default_factory=dict)
    """Step -> seconds."""
    is_finished: bool = False

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return FOLDER / f"{self.stage}.json"

    def save(self) -> None:
        """Write it, replacing what was there."""
        FOLDER.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(self.path)

    @classmethod
    def load(cls, stage: str, version: str) -> Self:
        """Return the record of a stage at this version; a fresh one, with a fresh seed, if there is none."""
        fresh = cls(stage, version, int.from_bytes(os.urandom(4), "big"))
        try:
            known = cls(**json.loads(fresh.path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return fresh
        return known if known.version == version else fresh


def tree_version(root: Path) -> str:
    """Return the commit, and a hash of what differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD").strip() or "no-commit"
    changes = git("diff", "HEAD")
    return commit + (f"+{hashlib.sha256(changes.encode()).hexdigest()[:12]}" if changes else "")
