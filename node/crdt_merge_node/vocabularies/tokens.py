"""Which row of one model's table of tokens belongs to which row of another's: by the tokens themselves.

A tokenizer map says for every row of the wanted table from which row of the other it comes. It is made from
two vocabularies, or read: a JSON list with one entry per row, the other table's row or null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.files import naming

TOKENIZER_NAME: Final = "tokenizer.json"
VOCABULARY_NAME: Final = "vocab.json"
FILE_BYTES_MAX: Final = 256 << 20
TOKEN_ROWS_MAX: Final = 1 << 24
NONE: Final = -1
"""In place of a row: the other table has none for this token."""
_FORMATS: Final = (
    f"Give the {TOKENIZER_NAME} or {VOCABULARY_NAME} of a Hugging Face tokenizer, or an object from token to "
    "id; its `save_pretrained` writes them."
)

Vocabulary = Mapping[str, int]
Rows = npt.NDArray[np.int64]


class RowMap(NamedTuple):
    """A map between tables of certain lengths."""

    rows: Rows
    """``(wanted rows,)``: the row of the other table, or :data:`NONE`."""
    dropped: int
    """Tokens of the other table that the wanted one does not have."""


def read_vocabulary(fs: Fs, path: Path) -> dict[str, int]:
    """Return the id of every token, from a file, or from the tokenizer beside a model or in its directory.

    Raises:
        InvalidRequestError: There is none, or it is none.
        StorageError: It cannot be read.
    """
    document = _read_json(fs, _find(fs, path))
    found = _vocabulary_of(document)
    if not found:
        raise InvalidRequestError(f"{path} holds no vocabulary.", hint=_FORMATS)
    for token, row in found.items():
        if type(row) is not int or not 0 <= row < TOKEN_ROWS_MAX:
            raise InvalidRequestError(f"{path}: token {token[:40]!a} has no id from 0 on.", hint=_FORMATS)
    return found


def read_map(fs: Fs, path: Path) -> list[int]:
    """Return a tokenizer map: per row of the wanted table the row of the other, or :data:`NONE`.

    Raises:
        InvalidRequestError: It is none.
        StorageError: It cannot be read.
    """
    document = _read_json(fs, path)
    rows = [NONE if row is None else row for row in document] if isinstance(document, list) else []
    if not rows or any(type(row) is not int or not NONE <= row < TOKEN_ROWS_MAX for row in rows):
        raise InvalidRequestError(
            f"{path} is no tokenizer map.",
            hint="It is a JSON list with, for every row of the wanted table, the other table's row or null.",
        )
    return rows


def row_map(source: Vocabulary, target: Vocabulary, source_rows: int, target_rows: int) -> RowMap:
    """Return which row of a table of ``source_rows`` belongs to each row of one of ``target_rows``.

    Tokens are the same if they are spelt the same. A row without a token, as padding has, belongs to none; so
    does a token beyond the table's end. Of several tokens with one id the first in byte order that both know
    counts.
    """
    rows = np.full(target_rows, NONE, np.int64)
    for token, row in sorted(target.items(), key=lambda item: (item[1], item[0].encode(errors="replace"))):
        partner = source.get(token, NONE)
        if row < target_rows and rows[row] == NONE and NONE < partner < source_rows:
            rows[row] = partner
    dropped = sum(
        row < source_rows and target.get(token, target_rows) >= target_rows for token, row in source.items()
    )
    return RowMap(rows, dropped)


def given_map(rows: list[int], source_rows: int, target_rows: int) -> RowMap:
    """Return a map that was read, for tables of these lengths; rows beyond its end belong to none.

    Raises:
        InvalidRequestError: It is longer than the wanted table, or names a row that the other does not have.
    """
    if len(rows) > target_rows or max(rows) >= source_rows:
        raise InvalidRequestError(
            f"The tokenizer map has {len(rows)} rows, the last from row {max(rows)}; the tables have "
            f"{target_rows} and {source_rows}."
        )
    found = np.full(target_rows, NONE, np.int64)
    found[: len(rows)] = rows
    return RowMap(found, source_rows - len(set(rows) - {NONE}))


def _find(fs: Fs, path: Path) -> Path:
    """Return the file with a vocabulary that a path stands for."""
    found = fs.stat(path)
    if found is None or (found.is_file and path.suffix == ".json"):
        return path  # If there is nothing, opening it says so.
    directory = path.parent if found.is_file else path
    for name in (TOKENIZER_NAME, VOCABULARY_NAME):
        if fs.stat(directory / name) is not None:
            return directory / name
    raise InvalidRequestError(
        f"There is no {TOKENIZER_NAME} and no {VOCABULARY_NAME} in {directory}, so nobody knows which row is "
        f"which token.",
        hint=_FORMATS,
    )


def _read_json(fs: Fs, path: Path) -> Any:
    with naming(path, "read"), fs.open_read(path, follow=True) as file:
        raw = file.read_at(0, FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise InvalidRequestError(f"{path} has over {FILE_BYTES_MAX} bytes.", hint=_FORMATS)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} is no JSON: {error}.", hint=_FORMATS) from None


def _vocabulary_of(document: Any) -> dict[str, int]:
    """Return the tokens of a ``tokenizer.json``, added ones last, or of an object; empty if it is neither."""
    if not isinstance(document, dict):
        return {}
    model = document.get("model")
    if not isinstance(model, dict):
        return dict(document)
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of their ids.
        pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in vocabulary]
        found = {piece: row for row, piece in enumerate(pieces) if isinstance(piece, str)}
    else:
        found = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            found[token["content"]] = token.get("id", NONE)
    return found
