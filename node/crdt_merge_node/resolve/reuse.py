"""A resolve whose result stands where it shall be written already: looked at instead of computed again.

Equal resolve keys name equal bytes, so an output whose account has the key of the job, and whose bytes have
the digest that the account says, is the result. It costs one pass over the output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.ports import Fs
from crdt_merge_node.version import VERSION

from .job import (
    PROVENANCE_SUFFIX,
    IsCancelled,
    OutputFile,
    ReportProgress,
    ResolveCancelledError,
    ResolveJob,
    ResolveResult,
)
from .output import provenance_path_of
from .provenance import PROVENANCE_SCHEMA

_PIECE_BYTES: Final = 1 << 22
_ACCOUNT_BYTES_MAX: Final = 1 << 26


def find_finished(
    job: ResolveJob, output: Path, *, fs: Fs, progress: ReportProgress, cancelled: IsCancelled
) -> ResolveResult | None:
    """Return the result of an earlier resolve of the same key, if its files are there and whole.

    Raises:
        ResolveCancelledError: ``cancelled`` said so.
    """
    account_path = provenance_path_of(output, job.shard_bytes)
    if job.directory_file:
        account_path = output / f"{job.directory_file}{PROVENANCE_SUFFIX}"
    try:
        with fs.open_read(account_path) as file:
            account = json.loads(file.read_at(0, _ACCOUNT_BYTES_MAX))
        if not _is_of(account, job):
            return None
        wanted = _files(account, job, output)
        total = sum(about["nbytes"] for _, about in wanted)
        for path, about in wanted:
            with fs.open_read(path) as file:
                if file.size() != about["nbytes"]:
                    return None
                found = hashlib.sha256()
                for position in range(0, about["nbytes"], _PIECE_BYTES):
                    if cancelled():
                        raise ResolveCancelledError("The resolve was cancelled. No file has changed.")
                    found.update(file.read_at(position, _PIECE_BYTES))
                    progress(position, total, "checking the output that is there")
            if found.hexdigest() != about["sha256"]:
                return None
        return _result(account, job, output, account_path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ParameterError):
        return None  # Whatever it is, it is not an account of ours: the resolve is done anew.


def _files(account: Mapping[str, Any], job: ResolveJob, output: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return every file of the output with what the account says of it."""
    if not job.shard_bytes and not job.directory_file:
        found = [(output, account["file"])]
    else:
        found = [(output / about["name"], about) for about in account["file"]["files"]]
    if account["modulators"] is not None:
        place = provenance_path_of(output, job.shard_bytes)
        found.append((place.with_name(account["modulators"]["name"]), account["modulators"]))
    return found


def _is_of(account: Mapping[str, Any], job: ResolveJob) -> bool:
    """Tell whether an account is of this very result, by this release."""
    worked = account["effective_strategy"]
    return bool(
        account["schema"] == PROVENANCE_SCHEMA
        and account["resolve_key"] == job.resolve_key.hex()
        and account["numerics"]["release"] == VERSION
        and account["file"]["shard_bytes"] == job.shard_bytes
        and worked["version"] == get(worked["strategy"]).version
    )


def _result(account: Mapping[str, Any], job: ResolveJob, output: Path, account_path: Path) -> ResolveResult:
    modulators = account["modulators"]
    return ResolveResult(
        resolve_key=job.resolve_key,
        output_digest=bytes.fromhex(account["output_digest"]),
        file_sha256=bytes.fromhex(account["file"]["sha256"]),
        nbytes=account["file"]["nbytes"],
        duration_s=account["run"]["duration_s"],
        output_path=output,
        manifest_path=account_path,
        decisions=account["decisions"],
        warnings=tuple(account["decisions"]["warnings"]),
        profile=account["numerics"]["class"],
        effective_strategy=account["effective_strategy"]["strategy"],
        modulators_path=None if modulators is None else account_path.with_name(modulators["name"]),
        files=tuple(
            OutputFile(name=about["name"], nbytes=about["nbytes"], sha256=bytes.fromhex(about["sha256"]))
            for about in account["file"]["files"]
        ),
        reused_tensors=account["file"]["tensors"],
        reused_bytes=account["file"]["nbytes"],
    )
