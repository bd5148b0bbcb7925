"""The file in which an act of administrators travels from one to the next until enough have signed it.

    {"schema": "act/1", "group": id, "group_name": text, "kind": word, "body": hex}

Only group, kind and body count: the body is that of the operation that will carry the act, with the
signatures so far. Everything else that a person wants to know of it is read from there; the name is for
whoever looks into the file. Signatures cover group, kind, action and nonce (PROTOCOL R12): nothing of it can
be changed.
"""

from __future__ import annotations

import json
from typing import Final

from crdt_merge_protocol.bodies import Act, Kind, read
from crdt_merge_protocol.limits import OPERATION_BYTES_MAX

from .control.model import ActKind
from .documents import document
from .errors import InvalidRequestError

SCHEMA: Final = "act/1"
TEXT_CHARS_MAX: Final = 4 * OPERATION_BYTES_MAX
GROUP_BYTES: Final = 32
KINDS: Final = {
    ActKind.POLICY: Kind.POLICY,
    ActKind.REMOVE: Kind.REMOVE,
    ActKind.BAN: Kind.BAN,
    ActKind.ERASE: Kind.ERASE,
    ActKind.ADMIT: Kind.ADMIT,
    ActKind.REVOKE: Kind.REVOKE,
}
WORDS: Final = {number: word for word, number in KINDS.items()}


def write_act(group: bytes, group_name: str, act: Act) -> str:
    """Return the text of an act."""
    found = document(
        SCHEMA,
        group=group.hex(),
        group_name=group_name,
        kind=WORDS[act.KIND].value,
        body=act.encode().hex(),
    )
    return json.dumps(found, indent=1) + "\n"


def read_act(text: str) -> tuple[bytes, Act]:
    """Return the group and the act in a text.

    Raises:
        InvalidRequestError: It is none that this release can read.
    """
    try:
        kind, group, body = _parse(text)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InvalidRequestError(
            f"this is not the file of an act: {error!r:.100}.",
            hint="`--act FILE` writes one, `act sign` adds to it.",
        ) from None
    act = read(kind, body)
    if len(group) != GROUP_BYTES or not isinstance(act, Act) or not act.nonce:
        raise InvalidRequestError(
            "this act cannot be read: it was damaged, or a newer release made it.",
            hint="Have it made again, or run the same release here.",
        )
    return group, act


def _parse(text: str) -> tuple[Kind, bytes, bytes]:
    found = json.loads(text) if len(text) <= TEXT_CHARS_MAX else {}
    if found["schema"] != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    return KINDS[ActKind(found["kind"])], bytes.fromhex(found["group"]), bytes.fromhex(found["body"])
