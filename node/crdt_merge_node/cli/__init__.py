"""The command line: one file per command, each importing what it needs only when it runs.

stdout carries the answer, stderr everything else. ``JSON.md`` lists what ``--json`` prints.
"""

from .app import main

__all__ = ["main"]
