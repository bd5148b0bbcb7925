"""Reading what people type: weights, ``key=value`` pairs, paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import click
from crdt_merge_protocol.limits import WEIGHT_MAX, WEIGHT_ONE

SMALL_BYTES_MAX: Final = 4 << 20
_EXPONENT_MAX: Final = 40
"""Of a weight as typed: 1e999999999 would otherwise be expanded digit by digit."""


def parse_weight(text: str) -> int:
    """Return a decimal such as ``0.5`` in units of 2^-32, the nearest one.

    Raises:
        click.BadParameter: Not a decimal number of the allowed size.
    """
    limit = WEIGHT_MAX // WEIGHT_ONE
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        raise click.BadParameter(f"{text!r} is not a number.") from None
    if not number.is_finite():
        raise click.BadParameter(f"{text!r} is not a number.")
    if abs(number.adjusted()) > _EXPONENT_MAX:
        raise click.BadParameter(
            f"{text!r} is too large or too small: weights are units of 2^-32 up to {limit}."
        )
    units = round(Fraction(number) * WEIGHT_ONE)
    if abs(units) > WEIGHT_MAX:
        raise click.BadParameter(f"{text} is not between -{limit} and {limit}.")
    return units


class Weight(click.ParamType[int]):
    """A weight in a group as decimal, above 0 (PROTOCOL R14); its value is an integer over 2^32."""

    name = "weight"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ARG002
        """Read one weight."""
        if isinstance(value, int):
            return value
        units = parse_weight(value)
        if units <= 0:
            raise click.BadParameter(f"{value} is not above 0, or rounds to 0.")
        return units


class Weights(click.ParamType[list[int]]):
    """Weights separated by commas, of either sign; their values are integers over 2^32."""

    name = "W,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:  # noqa: ARG002
        """Read all of them."""
        return [parse_weight(text) for text in value.split(",")] if isinstance(value, str) else value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002  click's signature.
        """Return how it is shown in the help."""
        return self.name


PARAM_HELP: Final = (
    "Parameter of the strategy (`strategy explain NAME`). By tensor: K='*.mlp.*=V;V'; by contribution: "
    "K='#DIGEST=V;V'. The first that fits counts, the last V is for the rest."
)
FILE_PARAM_HELP: Final = PARAM_HELP.replace("#DIGEST=V;V'", "#INPUT=V;V', its path, name or digest")


def parse_pairs(pairs: Iterable[str], *, option: str) -> dict[str, str]:
    """Return ``key=value`` texts as a mapping.

    Raises:
        click.BadParameter: No ``=``, no key, or a key twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not key=value.", param_hint=option)
        if key in values:
            raise click.BadParameter(f"{key!r} is given twice.", param_hint=option)
        values[key] = value
    return values


def absolute(path: str | None) -> str | None:
    """Return a path as the daemon, whose working directory is another, can use it."""
    if path is None:
        return None
    try:
        path.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("the path is not UTF-8, so the daemon cannot be told of it.") from None
    return str(Path(path).expanduser().absolute())


def read_small(path: str) -> bytes:
    """Return a file that a person wrote: a recipe, a header, a list of words.

    Raises:
        click.BadParameter: It is larger than anybody writes.
    """
    with Path(path).open("rb") as file:
        data = file.read(SMALL_BYTES_MAX + 1)
    if len(data) > SMALL_BYTES_MAX:
        raise click.BadParameter(f"{path} is larger than {SMALL_BYTES_MAX} bytes: is it another file?")
    return data


def read_text(path: str) -> str:
    """Return a text that a person wrote.

    Raises:
        click.BadParameter: It is not UTF-8, or too large.
    """
    try:
        return read_small(path).decode()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is no text in UTF-8: {error}.") from None


class _Readable(click.Path):
    """An existing file; whoever names one of another machine is told where it has to be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check that the file is here."""
        try:
            found = super().convert(value, param, ctx)
        except click.BadParameter:
            if _ELSEWHERE.match(str(value)):
                self.fail(f"{value!r} is not a file of this machine: copy it here first.", param, ctx)
            raise
        here = Path(os.fsdecode(found))
        if not (here.is_file() or (self.dir_okay and here.is_dir())):
            # A device or a pipe may have no end, or never begin.
            self.fail(f"{value!r} is no regular file.", param, ctx)
        return found


class _Named(click.Path):
    """A path that has a name: nothing can be written to the empty one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check that it is not empty."""
        if not os.fsdecode(value).strip():
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


_ELSEWHERE: Final = re.compile(r"(\w+://|[\w.@-]+:)")
"""How people write a file of another machine: as a URL, or as scp does."""
READABLE = _Readable(exists=True, dir_okay=False, readable=True)
MODEL = _Readable(exists=True, dir_okay=True, readable=True)
"""A safetensors file, or a directory of shards with its index."""
OUTPUT = _Named(dir_okay=False)
PLACE = _Named()
"""Where a model goes: a file, or a directory."""
SHARD_BYTES: Final = 5 * 10**9
"""Size of tensors in one shard if nobody says another: what Hugging Face writes."""


class ByteSize(click.ParamType[int]):
    """A number of bytes such as ``5GB`` (10^9) or ``512MiB`` (2^20)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one size."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no size: write 5GB, or 512MiB.", param, ctx)
        nbytes = int(Decimal(found[1]) * _UNITS[found[2].upper()])
        if not 0 < nbytes < 1 << 62:
            self.fail(f"{value!r} is no size that a file has.", param, ctx)
        return nbytes


_PATH_BYTES_MAX: Final = 4096
_SIZE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*([KMGT]?i?B?)", re.IGNORECASE)
_UNITS: Final = {"": 1, "B": 1} | {
    f"{prefix}{infix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for infix, base in (("", 1000), ("I", 1024))
    for suffix in ("", "B")
}


def shard_bytes_of(output: str, shard_bytes: int | None) -> int:
    """Return the size of shards if the output is to be a directory, else 0.

    It is one if a size is given, if the path ends with a slash, and if it is a directory that is there.
    """
    if shard_bytes is not None:
        return shard_bytes
    return SHARD_BYTES if output.endswith("/") or Path(output).is_dir() else 0


def refuse_clashes(written: Iterable[str | None], read: Iterable[str | None]) -> None:
    """Refuse to write one file, or directory, over another that the same command reads or writes.

    Raises:
        click.UsageError: Two are the same, or what is read is in a directory that would be replaced.
    """
    taken = [Path(path).resolve() for path in read if path and _can_be(path)]
    for path in filter(None, written):
        if not _can_be(path):
            continue  # Who opens it says why not; resolving takes the square of the length.
        place = Path(path).resolve()
        if any(place == other or place in other.parents for other in taken):
            raise click.UsageError(f"{path} is another file of this command too; name another place.")
        taken.append(place)


def _can_be(path: str) -> bool:
    """Tell whether the system would look at a path of this length (PATH_MAX)."""
    return len(os.fsencode(path)) < _PATH_BYTES_MAX
