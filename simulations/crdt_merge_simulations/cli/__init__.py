"""The command line of the simulator: one file per command, each importing what it needs only when it runs.

stdout carries the answer, stderr everything else, progress included.
"""

from .app import main

__all__ = ["main"]
