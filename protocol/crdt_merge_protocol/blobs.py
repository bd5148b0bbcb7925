"""Content addressing of tensors: chunk digests, blob digests, manifests, content ids (PROTOCOL R9, 5).

A tensor is a *blob*: its raw little-endian bytes in its own dtype, cut into 1 MiB chunks from offset 0. The
chunk size is part of the format. A *manifest* lists the tensors of a contribution, sorted by name as bytes;
it is itself fetched by its hash, the *content* id. A *schema* is the same list without the bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from blake3 import blake3

from .canonical import decode, digest, encode
from .errors import LimitExceededError, MalformedMessageError
from .fields import Fields
from .limits import (
    BLOB_BYTES_MAX,
    CHUNK_BYTES,
    DIMENSION_MAX,
    MANIFEST_BYTES_MAX,
    NDIM_MAX,
    TENSORS_MAX,
)

DTYPE_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Element types of contributions, under their safetensors names, with their size in bytes."""
OUTPUT_DTYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Those that merged values are written in."""
FLOAT_DTYPES: Final = OUTPUT_DTYPES | {"F8_E4M3", "F8_E5M2"}
"""Those that are merged. The narrowest are only read: their steps are too coarse for a result."""
ANY_FLOAT: Final = "any"
"""In a policy, before the output type: contributions may have float types other than the schema's."""
POLICY_DTYPES: Final = (
    "",
    *sorted(OUTPUT_DTYPES),
    ANY_FLOAT,
    *(f"{ANY_FLOAT}:{t}" for t in sorted(OUTPUT_DTYPES)),
)
"""What a policy may say of element types."""


def chunk_count(nbytes: int) -> int:
    """Return how many chunks a blob of ``nbytes`` has; an empty blob has none."""
    return -(-nbytes // CHUNK_BYTES)


def chunk_bytes(nbytes: int, index: int) -> int:
    """Return the size of chunk ``index`` of a blob of ``nbytes``."""
    return min(CHUNK_BYTES, nbytes - index * CHUNK_BYTES)


def chunk_digest(chunk: bytes | bytearray | memoryview) -> bytes:
    """Return the BLAKE3 digest of one chunk, 32 bytes."""
    return blake3(chunk).digest()


def blob_digest(nbytes: int, chunk_digests: Iterable[bytes]) -> bytes:
    """Return the digest that names a blob, from its size and its chunk digests."""
    return digest("crdt-merge/blob/1", nbytes.to_bytes(8, "little"), b"".join(chunk_digests))


def blob_digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """Return the digest that names the blob with these bytes."""
    view = memoryview(data).cast("B")
    chunks = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    return blob_digest(len(view), (chunk_digest(chunk) for chunk in chunks))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TensorSpec:
    """Name, element type and shape of a tensor: one line of a schema."""

    name: str
    dtype: str
    """A key of :data:`DTYPE_BYTES`."""
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """A tensor of a contribution and the blob that holds its bytes."""

    spec: TensorSpec
    blob: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tensors of one contribution, sorted by name as bytes."""

    entries: tuple[ManifestEntry, ...]

    @classmethod
    def of(cls, entries: Iterable[ManifestEntry]) -> Self:
        """Return the manifest of these entries, in canonical order."""
        return cls(tuple(sorted(entries, key=lambda entry: entry.spec.name.encode())))

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode([[e.spec.name, e.spec.dtype, list(e.spec.shape), e.blob] for e in self.entries])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the manifest in canonical bytes.

        Raises:
            RemoteProtocolError: Not a manifest within the limits.
        """
        entries = []
        for record in _records(data, what="manifest"):
            entries.append(ManifestEntry(spec=_read_spec(record), blob=record.id()))
            record.end()
        _check_order([entry.spec for entry in entries])
        return cls(tuple(entries))

    @property
    def content(self) -> bytes:
        """The content id: what contributions with the same tensors share."""
        return content_id(self.encode())

    @property
    def schema(self) -> Schema:
        """The same list without the bytes."""
        return Schema(tuple(entry.spec for entry in self.entries))

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(entry.spec.nbytes for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Schema:
    """Names, element types and shapes that every contribution of a group must have."""

    specs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, specs: Iterable[TensorSpec]) -> Self:
        """Return the schema of these tensors, in canonical order."""
        return cls(tuple(sorted(specs, key=lambda spec: spec.name.encode())))

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode([[spec.name, spec.dtype, list(spec.shape)] for spec in self.specs])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the schema in canonical bytes.

        Raises:
            RemoteProtocolError: Not a schema within the limits.
        """
        specs = []
        for record in _records(data, what="schema"):
            specs.append(_read_spec(record))
            record.end()
        _check_order(specs)
        return cls(tuple(specs))

    @property
    def id(self) -> bytes:
        """The hash by which a policy names the schema and nodes fetch it."""
        return schema_id(self.encode())


def content_id(manifest: bytes) -> bytes:
    """Return the content id of an encoded manifest."""
    return digest("crdt-merge/content/1", manifest)


def schema_id(schema: bytes) -> bytes:
    """Return the id of an encoded schema."""
    return digest("crdt-merge/schema/1", schema)


def payload_id(payload: bytes) -> bytes:
    """Return the id of an encoded payload: the salted, erasable metadata of a contribution."""
    return digest("crdt-merge/payload/1", payload)


def contribution_digest(*, kind: str, content: bytes, weight: int) -> bytes:
    """Return the digest that orders and deduplicates contributions: type, content and weight, no author."""
    return digest(
        "crdt-merge/contribution/1", kind.encode(), content, weight.to_bytes(8, "little", signed=True)
    )


def _records(data: bytes, *, what: str) -> list[Fields]:
    values = decode(data, bytes_max=MANIFEST_BYTES_MAX, elements_max=TENSORS_MAX)
    return Fields([values], what=what).records(count_max=TENSORS_MAX)


def _read_spec(record: Fields) -> TensorSpec:
    name, dtype, dimensions = record.name(), record.text(size_max=8), record.items(count_max=NDIM_MAX)
    if dtype not in DTYPE_BYTES:
        raise MalformedMessageError(f"tensor {name}: element type {dtype!r} is unknown.")
    reader = Fields(dimensions, what=f"shape of {name}")
    spec = TensorSpec(
        name=name, dtype=dtype, shape=tuple(reader.integer(high=DIMENSION_MAX) for _ in dimensions)
    )
    if spec.nbytes > BLOB_BYTES_MAX:
        raise LimitExceededError(
            f"tensor {name} has {spec.nbytes} bytes, at most {BLOB_BYTES_MAX} are stored."
        )
    return spec


def _check_order(specs: Sequence[TensorSpec]) -> None:
    names = [spec.name.encode() for spec in specs]
    if any(first >= second for first, second in itertools.pairwise(names)):
        raise MalformedMessageError("tensor names are not sorted and unique")
