"""``--verify``: compute the output anew and compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import clean, count, note, say, say_json

if TYPE_CHECKING:
    from .options import Invocation

DIFFERENT = 7
_NAMED_MAX = 10


@contextmanager
def beside(file: str) -> Iterator[Path]:
    """Give the path of an output that will be gone afterwards, on the disk of ``file``."""
    import tempfile

    parent = Path(file).resolve().parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".verify-") as directory:
        yield Path(directory) / "expected.safetensors"


def answer(invocation: Invocation, schema: str, expected: Path, file: str, *, resolve_key: str) -> None:
    """Say whether ``file`` is what it should be; end with exit status 7 if not."""
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.report.verifying import compare_files

    differences = compare_files(expected, Path(file), fs=SystemFs())
    if invocation.is_json:
        say_json(
            schema,
            event="verified",
            path=file,
            is_equal=not differences,
            resolve_key=resolve_key,
            differences=[{"tensor": each.tensor, "what": each.what} for each in differences],
        )
    elif not differences:
        say(f"{clean(file)} is the output of resolve key {resolve_key}, bit for bit")
    else:
        tensors = count(len(differences), "tensor")
        say(f"{clean(file)} is NOT the output of resolve key {resolve_key}: {tensors}")
        for each in differences[:_NAMED_MAX]:
            note(f"  {clean(each.tensor)}: {each.what}")
        if len(differences) > _NAMED_MAX:
            note(f"  and {len(differences) - _NAMED_MAX} more")
    if differences:
        raise click.exceptions.Exit(DIFFERENT)
