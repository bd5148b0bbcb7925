"""How an author had a contribution in files, so that whoever fetches it can write the same files again.

A contribution is its tensors (PROTOCOL R9); the order in which a file holds them, its metadata, and how many
files there are change no content id and no merge. They are kept in a *packing*: the headers as they stood,
and the index of a sharded checkpoint. It is an object that the erasable payload names. A file that is what
:func:`.tensorfile.layout` makes needs none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from .blobs import Manifest, ManifestEntry, TensorSpec
from .canonical import decode, digest, encode
from .checkpoint import check_shards, is_shard_name, parse_index
from .errors import LimitExceededError, MalformedMessageError
from .fields import Fields
from .limits import (
    ADAPTER_CONFIG_BYTES_MAX,
    PACKING_BYTES_MAX,
    SAFETENSORS_HEADER_BYTES_MAX,
    SHARD_NAME_CHARS_MAX,
    SHARDS_MAX,
)
from .tensorfile import LENGTH_BYTES, layout, parse_header

FORMAT: Final = 1
FORMAT_WITH_CONFIG: Final = 2
"""What an adapter has: one field more. Releases that know it not can write the tensors all the same."""
CONFIG_NAME: Final = "adapter_config.json"
_FILE_BYTES_MAX: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """One file without its tensors."""

    name: str
    """Within its directory; empty for a checkpoint that is one file under whatever name."""
    nbytes: int
    """Of the whole file."""
    header: bytes
    """The JSON header as it stood, without the length field."""

    @property
    def start(self) -> bytes:
        """How the file begins."""
        return len(self.header).to_bytes(LENGTH_BYTES, "little") + self.header


class UnpackedFile(NamedTuple):
    """One file to be written: its beginning, then these tensors without a gap."""

    name: str
    start: bytes
    entries: tuple[ManifestEntry, ...]
    """In the order of the file."""

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.start) + sum(entry.spec.nbytes for entry in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The files of a contribution without its tensors."""

    files: tuple[PackedFile, ...]
    index: bytes = b""
    """Bytes of the index file; empty if there was none."""
    config: bytes = b""
    """Bytes of the configuration beside an adapter's tensors; empty if it is none."""

    @property
    def is_directory(self) -> bool:
        """Whether the checkpoint was a directory."""
        return bool(self.files[0].name)

    def encode(self) -> bytes:
        """Return the canonical bytes.

        Raises:
            LimitExceededError: More than an object may have.
        """
        fields = [[[file.name, file.nbytes, file.header] for file in self.files], self.index]
        data = encode([FORMAT_WITH_CONFIG, *fields, self.config] if self.config else [FORMAT, *fields])
        if len(data) > PACKING_BYTES_MAX:
            raise LimitExceededError(
                f"headers and index of the checkpoint have {len(data)} bytes, at most "
                f"{PACKING_BYTES_MAX} are kept.",
                hint="Save it with less metadata.",
            )
        return data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the packing in canonical bytes; what it says of tensors :meth:`unpack` checks.

        Raises:
            RemoteProtocolError: Not a packing within the limits.
        """
        fields = Fields(decode(data, bytes_max=PACKING_BYTES_MAX, elements_max=SHARDS_MAX), what="packing")
        version = fields.integer(low=FORMAT, high=FORMAT_WITH_CONFIG)
        files = []
        for record in fields.records(count_max=SHARDS_MAX):
            name = record.text(size_max=SHARD_NAME_CHARS_MAX)
            size = record.integer(high=_FILE_BYTES_MAX)
            header = record.blob(size_max=SAFETENSORS_HEADER_BYTES_MAX)
            record.end()
            files.append(PackedFile(name=name, nbytes=size, header=header))
        index = fields.blob(size_max=PACKING_BYTES_MAX)
        config = fields.blob(size_max=ADAPTER_CONFIG_BYTES_MAX) if version == FORMAT_WITH_CONFIG else b""
        fields.end()
        if version == FORMAT_WITH_CONFIG and not config:
            raise MalformedMessageError("packing: its configuration is empty.")
        found = cls(files=tuple(files), index=index, config=config)
        found._check_names()
        return found

    def _check_names(self) -> None:
        names = [file.name for file in self.files]
        if names != [""] and not (names and names == sorted(set(names)) and all(map(is_shard_name, names))):
            raise MalformedMessageError("packing: these are not the names of a checkpoint's files.")
        if (len(names) > 1 and not self.index) or (names == [""] and self.index):
            raise MalformedMessageError("packing: several files have an index, and one alone has none.")
        if self.config and (len(names) > 1 or names == [""]):
            raise MalformedMessageError("packing: beside a configuration is one file in a directory.")

    def unpack(self, manifest: Manifest) -> tuple[UnpackedFile, ...]:
        """Return the files that hold the tensors of a manifest, each exactly once.

        Raises:
            RemoteProtocolError, MalformedTensorFileError: The packing is not one of these tensors.
        """
        blobs = {entry.spec.name: entry for entry in manifest.entries}
        found: list[UnpackedFile] = []
        for file in self.files:
            entries = sorted(parse_header(file.header, file.nbytes).entries, key=lambda e: (e.begin, e.end))
            for entry in entries:
                known = blobs.get(entry.spec.name)
                if known is None or known.spec != entry.spec:
                    raise MalformedMessageError(f"packing: tensor {entry.spec.name} is another one.")
            ordered = tuple(blobs[entry.spec.name] for entry in entries)
            found.append(UnpackedFile(file.name, file.start, ordered))
        if sum(len(file.entries) for file in found) != len(blobs):
            raise MalformedMessageError("packing: it does not hold every tensor exactly once.")
        listed = {file.name: [entry.spec.name for entry in file.entries] for file in found}
        if self.index:
            check_shards(parse_index(self.index), listed)
        if self.config:
            found.append(UnpackedFile(CONFIG_NAME, self.config, ()))
        return tuple(found)


def plain_file(manifest: Manifest) -> UnpackedFile:
    """Return the one file in our own layout that holds the tensors of a manifest."""
    start, _ = layout(entry.spec for entry in manifest.entries)
    return UnpackedFile("", start, manifest.entries)


def is_plain(file: PackedFile, specs: Iterable[TensorSpec]) -> bool:
    """Tell whether a file is what :func:`plain_file` makes, so that nothing about it has to be kept."""
    return not file.name and file.start == layout(specs)[0]


def packing_id(data: bytes) -> bytes:
    """Return the id of an encoded packing."""
    return digest("crdt-merge/packing/1", data)
