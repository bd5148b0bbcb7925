"""From what an administrator asks for to an act that nobody has signed yet."""

from __future__ import annotations

from typing import Final

from crdt_merge_protocol.acts import Act, Admit, Ban, Erase, Revoke
from crdt_merge_protocol.bodies import Remove
from crdt_merge_protocol.operations import Add, read_body
from crdt_merge_protocol.policy import NONCE_BYTES
from crdt_merge_protocol.state import CRDTMergeState

from crdt_merge_node.control.model import ActKind, ActRequest
from crdt_merge_node.errors import InvalidRequestError, NotFoundError
from crdt_merge_node.services import Services

from .naming import find, find_tag, peer_names

TAGS_MAX: Final = 400
"""Contributions in one act: an erasure names each three times, and has to fit an operation."""
ID_DIGITS: Final = 64
LISTING: Final = "crdt-merge-node inspect"


def make_act(services: Services, group: bytes, request: ActRequest) -> Act:
    """Return what is asked for, unsigned."""
    state, nonce = services.engine.replicas[group].state, services.rng.bytes(NONCE_BYTES)
    match request.kind:
        case ActKind.REMOVE:
            tags = _tags(state, request.targets) - state.removes
            if not tags:
                raise InvalidRequestError("these contributions have been removed already.")
            return Remove(targets=_bounded(tags), nonce=nonce)
        case ActKind.BAN:
            contents = {_content(state, text) for text in request.targets}
            return Ban(contents=_bounded(contents), reason=request.reason, nonce=nonce)
        case ActKind.ERASE:
            tags = _tags(state, request.targets)
            contents = {add_of(state, tag)[0].content for tag in tags}
            tags |= {tag for tag in state.adds if add_of(state, tag)[0].content in contents}
            return Erase(contents=_bounded(contents), tags=_bounded(tags), reason=request.reason, nonce=nonce)
        case ActKind.ADMIT:
            return _admission(services, group, request, nonce)
        case ActKind.REVOKE:
            return _revocation(services, group, request, nonce)
    raise InvalidRequestError(f'"{request.kind}" is nothing that an act can do.')


def _admission(services: Services, group: bytes, request: ActRequest, nonce: bytes) -> Admit:
    state = services.engine.replicas[group].state
    if state.genesis.is_open:
        raise InvalidRequestError(
            f'group "{state.genesis.name}" is open: every author of the cluster counts.',
            hint="A group that admits its authors is made so: group create NAME --admitted",
        )
    return Admit(author=author_named(services, _only(request)), nonce=nonce)


def _revocation(services: Services, group: bytes, request: ActRequest, nonce: bytes) -> Revoke:
    state, key = services.engine.replicas[group].state, author_named(services, _only(request))
    if request.counts_nothing:
        heads: set[bytes] = set()
    elif request.heads:
        known = {signed.id: "" for signed in state.causal()}
        heads = {find(text, known, what="operation", listing=LISTING) for text in request.heads}
    else:
        heads = set(state.heads())
    return Revoke(key=key, heads=_bounded(heads), reason=request.reason, nonce=nonce)


def _only(request: ActRequest) -> str:
    if len(request.targets) != 1:
        raise InvalidRequestError("one act is about one key.", hint="Repeat the command for each.")
    return request.targets[0]


def author_named(services: Services, text: str) -> bytes:
    """Return a node id: a whole one, known or not, or what names this node or a known peer."""
    if _is_id(text):
        return bytes.fromhex(text)
    names = {services.engine.node: services.config.node.name, **peer_names(services)}
    return find(text, names, what="node", listing="crdt-merge-node peer list")


def _is_id(text: str) -> bool:
    return len(text) == ID_DIGITS and set(text.lower()) <= set("0123456789abcdef")


def _bounded(ids: set[bytes]) -> tuple[bytes, ...]:
    if len(ids) > TAGS_MAX:
        raise InvalidRequestError(
            f"{len(ids)} contributions are too many for one act, {TAGS_MAX} fit.",
            hint="Name fewer, and repeat the command for the others.",
        )
    return tuple(sorted(ids))


def _tags(state: CRDTMergeState, targets: tuple[str, ...]) -> set[bytes]:
    """Return all tags of the slots of the named contributions."""
    found: set[bytes] = set()
    for text in targets:
        found.update(slot_tags(state, _tag(state, text)))
    return found


def _tag(state: CRDTMergeState, text: str) -> bytes:
    """Return the tag of a contribution that is named by its tag or its digest."""
    for tag in sorted(state.adds) if _is_id(text) else ():
        if add_of(state, tag)[0].digest.hex() == text.lower():
            return tag
    return find_tag(text, state.adds, group_name=state.genesis.name)


def _content(state: CRDTMergeState, text: str) -> bytes:
    """Return a content id: of a contribution by tag or digest, or any whole one."""
    try:
        return add_of(state, _tag(state, text))[0].content
    except NotFoundError:
        if _is_id(text):
            return bytes.fromhex(text)  # Nobody needs to have seen it: a ban beats future ADDs as well.
        raise


def slot_tags(state: CRDTMergeState, tag: bytes) -> list[bytes]:
    """Return every contribution that this node has seen in the slot of one, sorted (PROTOCOL R16)."""
    place = _place(state, tag)
    return [other for other in sorted(state.adds) if _place(state, other) == place]


def _place(state: CRDTMergeState, tag: bytes) -> tuple[bytes, str, str]:
    add, author = add_of(state, tag)
    return author, add.type, add.slot


def add_of(state: CRDTMergeState, tag: bytes) -> tuple[Add, bytes]:
    """Return what a contribution says, and its author."""
    signed = state.get(tag)
    assert signed is not None, "a tag of the state has its operation"
    add = read_body(signed.operation)
    assert isinstance(add, Add), "a tag is an ADD"
    return add, signed.operation.author
