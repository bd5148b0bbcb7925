"""File systems that share blocks or will not, whatever the one is on which tests run."""

import shutil
from pathlib import Path

from crdt_merge_node.ports import SystemFs


class SharingFs(SystemFs):
    """A file system whose clones are copies: the one on which tests run cannot share blocks."""

    def clone(self, source: Path, target: Path) -> bool:
        shutil.copyfile(source, target)
        return True


class StubbornFs(SystemFs):
    """A file system on which a file has one name and its blocks for itself."""

    def clone(self, source: Path, target: Path) -> bool:
        return False

    def link(self, source: Path, target: Path) -> bool:
        return False
