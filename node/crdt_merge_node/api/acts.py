"""Acts of administrators: making, signing and submitting them (PROTOCOL R12).

An act is made by one administrator, signed by as many as the group's quorum, and submitted by anybody. Where
one signature is enough, the commands do all three at once.
"""

from __future__ import annotations

from dataclasses import replace

from crdt_merge_protocol.acts import Act, Erase, PolicyAct, Revoke
from crdt_merge_protocol.bodies import Remove
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.limits import REASON_CHARS_MAX
from crdt_merge_protocol.operations import read_body
from crdt_merge_protocol.state import CRDTMergeState

from crdt_merge_node.act_files import WORDS, read_act, write_act
from crdt_merge_node.control.model import Act as SignedAct
from crdt_merge_node.control.model import ActInfo, ActRequest
from crdt_merge_node.errors import InvalidRequestError, NotAdministratorError, NotFoundError, QuorumError
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger

from .act_making import make_act
from .act_words import describe, named
from .naming import find_group

log = get_logger()


async def propose(services: Services, group_name: str, request: ActRequest) -> SignedAct:
    """Return an act with the signature of this node.

    Raises:
        NotAdministratorError: This node is none of the group.
        InvalidRequestError: Nobody could do that.
        NotFoundError: A target is not known here.
    """
    group = find_group(services, group_name)
    require_admin(services, group)
    if not request.targets:
        raise InvalidRequestError("an act has to name something.")
    if len(request.reason.encode()) > REASON_CHARS_MAX:
        raise InvalidRequestError(f"a reason has at most {REASON_CHARS_MAX} bytes.")
    return sign_for(services, group, make_act(services, group, request))


def sign_for(services: Services, group: bytes, act: Act) -> SignedAct:
    """Return an act with the signature of this node added."""
    signed = act.signed_by(services.identity.node_key, group)
    name = services.engine.replicas[group].state.genesis.name
    log.info("act.signed", group=group, kind=WORDS[act.KIND].value)
    return SignedAct(text=write_act(group, name, signed), info=describe(services, group, signed))


async def show(services: Services, text: str) -> ActInfo:
    """Return what an act says, and who has signed it."""
    group, act = _read(services, text)
    return describe(services, group, act, operation=_find(services, group, act))


async def sign(services: Services, text: str) -> SignedAct:
    """Return an act with the signature of this node added."""
    group, act = _read(services, text)
    require_admin(services, group)
    signed = sign_for(services, group, act)
    if found := _find(services, group, act):
        return replace(signed, info=replace(signed.info, operation=found.hex()))
    return signed


async def submit(services: Services, text: str) -> ActInfo:
    """Bring an act into its group; return it with the id of its operation.

    Raises:
        QuorumError: Too few administrators have signed.
        InvalidRequestError: The policy has changed since it was made.
        NotFoundError: It names what is not here yet.
    """
    group, act = _read(services, text)
    return await bring(services, group, act)


async def bring(services: Services, group: bytes, act: Act) -> ActInfo:
    """Store an act and announce it, unless it is in the group already."""
    state = services.engine.replicas[group].state
    if found := _find(services, group, act):
        return describe(services, group, act, operation=found)
    info = describe(services, group, act)
    if info.needed:
        raise QuorumError(
            f"{info.needed} more of the administrators of group {info.group_name} must sign: "
            f"{len(info.signers)} of {info.quorum} have.",
            hint="On another administrator's node: crdt-merge-node act sign FILE",
        )
    refs = _refs(state, act)
    if unknown := [id_ for id_ in refs if id_ not in state]:
        raise NotFoundError(
            f"the act names {unknown[0].hex()[:12]}, which has not arrived at this node yet.",
            hint="Wait until the group has converged (`why`), or submit it on the node where it was made.",
        )
    signed = await services.driver.author(group, act.KIND, act.encode(), refs)
    log.info("act.submitted", group=group, kind=info.kind, operation=signed.id, reason=info.reason)
    await services.keeper.current(group)
    return describe(services, group, act, operation=signed.id)


def require_admin(services: Services, group: bytes) -> Genesis:
    """Return the genesis of a group that this node administers.

    Raises:
        NotAdministratorError: It does not.
    """
    services.driver.standing.check()
    genesis = services.engine.replicas[group].state.genesis
    if services.engine.node not in genesis.admins:
        admins = ", ".join(named(services, admin) for admin in genesis.admins)
        raise NotAdministratorError(
            f'this node is no administrator of group "{genesis.name}".', hint=f"Ask one of: {admins}."
        )
    return genesis


def _read(services: Services, text: str) -> tuple[bytes, Act]:
    group, act = read_act(text)
    if group not in services.engine.replicas:
        raise NotFoundError(
            f"this node does not know the group {group.hex()[:12]} of the act.",
            hint="`crdt-merge-node group list` shows those that it knows.",
        )
    return group, act


def _find(services: Services, group: bytes, act: Act) -> bytes:
    """Return the operation by which an act has its effect; empty if there is none."""
    state = services.engine.replicas[group].state
    for signed in state.causal(state.acts):
        said = read_body(signed.operation) if signed.operation.kind == act.KIND else None
        if isinstance(said, Act) and said.digest(group) == act.digest(group):
            return signed.id
    return b""


def _refs(state: CRDTMergeState, act: Act) -> tuple[bytes, ...]:
    """Return what the operation that carries an act has to refer to."""
    match act:
        case PolicyAct(policy=policy):
            view = state.view
            if policy.version != view.policy.version + 1:
                raise InvalidRequestError(
                    f"the act makes version {policy.version} of the policy, and the group has version "
                    f"{view.policy.version}.",
                    hint="Make it again: `policy set` with the same options.",
                )
            return (view.policy_id,) if view.policy_id else ()
        case Remove(targets=targets):
            return targets
        case Erase(tags=tags):
            return tags
        case Revoke(heads=heads):
            return heads
    return ()
