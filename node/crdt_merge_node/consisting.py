"""What contributions and bases consist of, as far as that is here: before any of it goes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from crdt_merge_protocol.blobs import Manifest
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.operations import Kind, PolicyAct, read_body
from crdt_merge_protocol.state import CRDTMergeState

from .contents import read_payload
from .errors import CorruptError
from .storage import Store


def blobs_of(store: Store, contents: Iterable[bytes]) -> set[bytes]:
    """Return the blobs that manifests name, as far as those are here. Blocks."""
    found: set[bytes] = set()
    for content in sorted(contents):
        data = _object(store, content)
        if data is None:
            continue
        try:
            found.update(entry.blob for entry in Manifest.decode(data).entries)
        except RemoteProtocolError:
            continue  # It names nothing that anybody fetched.
    return found


def packings_of(store: Store, payloads: Collection[bytes]) -> set[bytes]:
    """Return what payloads say that their files were packed by, as far as they are here. Blocks."""
    found = (_object(store, payload) for payload in sorted(payloads))
    return {packing for data in found if data and (packing := read_payload(data).packing)}


def only_of(store: Store, ids: Iterable[bytes], name: Callable[[bytes], bytes]) -> set[bytes]:
    """Return what may go as an object of one kind: what is here under another is no such thing. Blocks.

    Acts and ADDs name any 32 bytes, also those of a schema, or of the notes of somebody in another group.
    """
    found = ((id_, _object(store, id_)) for id_ in sorted(ids))
    return {id_ for id_, data in found if data is None or name(data) == id_}


def bases_of(state: CRDTMergeState) -> set[bytes]:
    """Return the base of every policy that a group has or had."""
    policies = [state.genesis.policy]
    for signed in state.causal(state.acts):
        act = read_body(signed.operation) if signed.operation.kind == Kind.POLICY else None
        if isinstance(act, PolicyAct):
            policies.append(act.policy)
    return {policy.base for policy in policies if policy.base is not None}


def _object(store: Store, id_: bytes) -> bytes | None:
    try:
        return store.blobs.get_object(id_)
    except CorruptError:
        return None  # The damaged row is gone.
