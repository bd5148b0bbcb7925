"""Rows of a parameter that name an input by its file: ``#finance.safetensors=0.5``, not ``#3604483c=0.5``.

Contribution digests, by which tables know inputs, are known once all files have been read, and nobody knows
them by heart. So offline a row may name a file as it was given, or by the last part of its path. Until the
files have been read a digest that is none stands for it, so that all else is checked before the reading.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from crdt_merge_protocol.errors import ParameterError

_DIGEST: Final = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_SHOWN_MAX: Final = 8


class InputNames:
    """What the inputs of an offline merge are called."""

    def __init__(self, paths: Sequence[Path], weights: Sequence[int]) -> None:
        """Take the inputs and the weight of each, which is part of its digest."""
        self._paths = tuple(paths)
        self._weights = tuple(weights)
        self._stand_ins = tuple(
            hashlib.sha256(f"crdt-merge/row-name/1/{number}".encode()).hexdigest()
            for number in range(len(paths))
        )

    def stood_for(self, params: Mapping[str, str]) -> dict[str, str]:
        """Return parameters with stand-ins for digests in place of files' names.

        Raises:
            ParameterError: A name is that of none of the inputs, or of several.
        """
        return {name: self._table(name, text) if "#" in text else text for name, text in params.items()}

    def resolved(self, params: Mapping[str, str], digests: Sequence[bytes]) -> dict[str, str]:
        """Return parameters with the inputs' digests, in their order, in place of stand-ins."""
        found = dict(params)
        for stand_in, digest in zip(self._stand_ins, digests, strict=True):
            found = {name: text.replace(stand_in, digest.hex()) for name, text in found.items()}
        return found

    def _table(self, parameter: str, text: str) -> str:
        return ";".join(self._row(parameter, row) for row in text.split(";"))

    def _row(self, parameter: str, row: str) -> str:
        selector, equals, value = row.rpartition("=")
        glob, mark, name = selector.partition("#")
        if not (equals and mark):
            return row
        who = self._stand_in(parameter, name.strip())
        return f"{glob}#{who}={value}"

    def _stand_in(self, parameter: str, name: str) -> str:
        """Return what stands for a name: an input as it was given counts before one that ends like it."""
        given = [number for number, path in enumerate(self._paths) if name and path == Path(name)]
        found = given or [number for number, path in enumerate(self._paths) if path.name == name]
        if not found and _DIGEST.fullmatch(name):
            return name
        if len({(self._paths[number], self._weights[number]) for number in found}) != 1:
            self._refuse(parameter, name, found)
        return self._stand_ins[found[0]]

    def _refuse(self, parameter: str, name: str, found: Sequence[int]) -> NoReturn:
        what = (
            f"is the name of {len(found)} inputs" if found else "is none of the inputs, nor the digest of one"
        )
        rest = len(self._paths) - _SHOWN_MAX
        shown = ", ".join(map(str, self._paths[:_SHOWN_MAX])) + (f" and {rest} more" if rest > 0 else "")
        raise ParameterError(
            f"{parameter}: #{name[:200]} {what}. The inputs are: {shown}.",
            hint="Name one as above, or by the first 8 digits or more of its contribution digest.",
        )
