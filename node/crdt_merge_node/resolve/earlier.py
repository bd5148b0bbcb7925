"""Reading what an earlier output has to offer to the next: its account, and where its tensors stand.

Nothing is trusted but that an account names bytes: what is taken over is hashed while it is copied and has to
have the blob digest that the account gives it. If it has not, all is computed (``without_what_changed``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from crdt_merge_protocol.blobs import blob_digest
from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.limits import CHUNK_BYTES

from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.errors import FullError, StorageError
from crdt_merge_node.ports import Fs
from crdt_merge_node.version import VERSION

from .blocks import ChunkHasher
from .files import SourceReader
from .job import KeptTensor, TensorSource
from .output import provenance_path_of
from .provenance import PROVENANCE_SCHEMA
from .taken import EarlierChangedError, Reuse

ACCOUNT_BYTES_MAX: Final = 1 << 26
_MALFORMED: Final = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


def read_earlier(fs: Fs, output: Path, *, sha256: bytes = b"") -> dict[bytes, KeptTensor]:
    """Return the tensors of an output by their keys; none if it or its provenance is missing or unreadable.

    Args:
        fs: Where it is.
        output: The file, or the directory.
        sha256: Of the account, if it is known; one with another is not believed.
    """
    with contextlib.suppress(OSError, CrdtMergeError, *_MALFORMED):
        found = fs.stat(output)
        path = account_path(output, is_directory=found is not None and found.is_directory)
        with fs.open_read(path) as file:
            data = file.read_at(0, ACCOUNT_BYTES_MAX)
        if sha256 and hashlib.sha256(data).digest() != sha256:
            return {}
        account = json.loads(data)
        # Another release may compute other bits: a version of a strategy is raised only with those it knows.
        if account["schema"] == PROVENANCE_SCHEMA and account["numerics"]["release"] == VERSION:
            return _kept(fs, output, account)
    return {}


def account_path(output: Path, *, is_directory: bool) -> Path:
    """Return where the account of an output is."""
    return provenance_path_of(output, 1 if is_directory else 0)


def _kept(fs: Fs, output: Path, account: Mapping[str, Any]) -> dict[bytes, KeptTensor]:
    said = {each["name"]: each for each in account.get("tensors", ()) if each.get("key")}
    kept = {}
    for entry in read_checkpoint(fs, output).entries if said else ():
        about = said.get(entry.spec.name)
        if about is None:
            continue
        source = TensorSource(
            str(entry.path), entry.begin, entry.end - entry.begin, blob=bytes.fromhex(about["blob"])
        )
        if len(source.blob) == len(hashlib.sha256().digest()):
            misfits = int(about.get("misfits", 0))
            kept[bytes.fromhex(about["key"])] = KeptTensor(source, misfits, about.get("findings"))
    return kept


@contextlib.contextmanager
def telling_what_changed(reuse: Reuse, fs: Fs) -> Iterator[None]:
    """Turn an error of reading into one that says that it was an earlier output, if it was.

    Raises:
        EarlierChangedError: Something that was to be taken over is not what its account says.
    """
    try:
        yield
    except FullError:
        raise
    except StorageError as error:
        if all(_is_whole(each.kept.source, fs) for each in reuse.taken.values()):
            raise
        raise EarlierChangedError from error


def _is_whole(source: TensorSource, fs: Fs) -> bool:
    reader, hasher = SourceReader(fs), ChunkHasher()
    try:
        for offset in range(0, source.nbytes, CHUNK_BYTES):
            hasher.update(reader.read(source, offset, min(CHUNK_BYTES, source.nbytes - offset)))
    except StorageError:
        return False
    finally:
        reader.close()
    return blob_digest(source.nbytes, hasher.digests()) == source.blob
