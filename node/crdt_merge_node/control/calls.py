"""The calls of the control service as values: what the async and the sync client offer, said once.

A function here makes one call, with the parameters that ``NodeApi`` documents; the clients turn each into a
method with the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from crdt_merge_proto.v1 import node_service_pb2 as pb
from crdt_merge_proto.v1 import types_pb2 as t
from google.protobuf.message import Message

from . import model
from .codec import decode, encode

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Call(Generic[ValueT]):
    """One unary call: which method, with what, and how its response is read."""

    method: str
    request: Message
    read: Callable[[Any], ValueT]


@dataclass(frozen=True, slots=True)
class Stream(Generic[ValueT]):
    """One call with a stream of answers, each of which ``decode_event`` reads."""

    method: str
    request: Message


def version() -> Call[model.VersionInfo]:
    """Ask for the versions of the daemon."""
    return Call("Version", pb.VersionRequest(), lambda r: decode(r.version, model.VersionInfo))


def status() -> Call[model.Status]:
    """Ask for one screen of facts."""
    return Call("Status", pb.StatusRequest(), lambda r: decode(r.status, model.Status))


def why(group: str | None = None) -> Call[model.WhyReport]:
    """Ask what stands in the way of convergence."""
    return Call("Why", pb.WhyRequest(group=group), lambda r: decode(r.report, model.WhyReport))


def invite(*, expires_s: float) -> Call[model.Invite]:
    """Ask for a token."""
    return Call("Invite", pb.InviteRequest(expires_s=expires_s), lambda r: decode(r.invite, model.Invite))


def log_level(level: str | None = None) -> Call[model.LogLevel]:
    """Ask for the level of the log, or for another one."""
    return Call("LogLevel", pb.LogLevelRequest(level=level), lambda r: decode(r.level, model.LogLevel))


def events(
    *,
    after: int | None = None,
    age_s: float | None = None,
    last: int = 0,
    level: str = "info",
    follow: bool = False,
) -> Stream[model.LogEvent | model.EventsMissed]:
    """Ask what happened lately."""
    request = pb.EventsRequest(after=after, age_s=age_s, last=last, level=level, follow=follow)
    return Stream("Events", request)


def peer_list() -> Call[tuple[model.PeerInfo, ...]]:
    """Ask for the known peers."""
    return Call("PeerList", pb.PeerListRequest(), lambda r: _all(r.peers, model.PeerInfo))


def peer_show(peer: str) -> Call[model.PeerDetail]:
    """Ask for all about a peer."""
    return Call("PeerShow", pb.PeerShowRequest(peer=peer), lambda r: decode(r.detail, model.PeerDetail))


def peer_block(peer: str) -> Call[model.PeerInfo]:
    """Ask to refuse a peer."""
    return Call("PeerBlock", pb.PeerBlockRequest(peer=peer), lambda r: decode(r.peer, model.PeerInfo))


def peer_unblock(peer: str) -> Call[model.PeerInfo]:
    """Ask to let a peer in again."""
    return Call("PeerUnblock", pb.PeerUnblockRequest(peer=peer), lambda r: decode(r.peer, model.PeerInfo))


def peer_forget(peer: str) -> Call[model.PeerInfo]:
    """Ask to give a peer up."""
    return Call("PeerForget", pb.PeerForgetRequest(peer=peer), lambda r: decode(r.peer, model.PeerInfo))


def certificate_show() -> Call[model.CertificateInfo]:
    """Ask for the terms of the certificate."""
    request = pb.CertificateShowRequest()
    return Call("CertificateShow", request, lambda r: decode(r.certificate, model.CertificateInfo))


def certificate_renew() -> Call[model.CertificateInfo]:
    """Ask for a new certificate."""
    request = pb.CertificateRenewRequest()
    return Call("CertificateRenew", request, lambda r: decode(r.certificate, model.CertificateInfo))


def leave(
    *, copies: int = 0, wait_s: float = 0.0, accept_loss: bool = False
) -> Stream[model.LeavePlan | model.Progress | model.LeaveReport]:
    """Ask to leave the cluster for good."""
    return Stream("Leave", pb.LeaveRequest(copies=copies, wait_s=wait_s, accept_loss=accept_loss))


def backup(
    *, path: str, with_keys: bool = False, copy: bool = False
) -> Stream[model.Progress | model.BackupReport]:
    """Ask for a copy of everything that is stored."""
    return Stream("Backup", pb.BackupRequest(path=path, with_keys=with_keys, copy=copy))


def group_create(
    *,
    name: str,
    strategy: str,
    params: Mapping[str, str] | None = None,
    base_path: str | None = None,
    like_path: str | None = None,
    dtype: str = "",
    weight_cap: int = 0,
    holders: int = 0,
    admins: tuple[str, ...] = (),
    quorum: int = 0,
    admitted: bool = False,
) -> Stream[model.Progress | model.GroupInfo]:
    """Ask for a new group."""
    request = pb.GroupCreateRequest(
        name=name,
        strategy=strategy,
        params=params,
        base_path=base_path,
        like_path=like_path,
        dtype=dtype,
        weight_cap=weight_cap,
        holders=holders,
        admins=admins,
        quorum=quorum,
        admitted=admitted,
    )
    return Stream("GroupCreate", request)


def group_list() -> Call[tuple[model.GroupInfo, ...]]:
    """Ask for the known groups."""
    return Call("GroupList", pb.GroupListRequest(), lambda r: _all(r.groups, model.GroupInfo))


def group_show(group: str) -> Call[model.GroupDetail]:
    """Ask for all about a group."""
    return Call("GroupShow", pb.GroupShowRequest(group=group), lambda r: decode(r.detail, model.GroupDetail))


def group_follow(group: str, *, follow: bool) -> Call[model.GroupInfo]:
    """Ask to fetch the blobs of a group, or to stop it."""
    request = pb.GroupFollowRequest(group=group, follow=follow)
    return Call("GroupFollow", request, lambda r: decode(r.group, model.GroupInfo))


def policy_show(group: str) -> Call[model.PolicyInfo]:
    """Ask for the current policy."""
    request = pb.PolicyShowRequest(group=group)
    return Call("PolicyShow", request, lambda r: decode(r.policy, model.PolicyInfo))


def policy_set(
    group: str, changes: model.PolicyChanges, *, propose: bool = False
) -> Stream[model.Progress | model.PolicyInfo | model.Act]:
    """Ask for the next version of the policy."""
    request = pb.PolicySetRequest(group=group, changes=encode(changes, t.PolicyChanges), propose=propose)
    return Stream("PolicySet", request)


def contribution_add(
    group: str,
    *,
    path: str,
    slot: str = "main",
    base_path: str | None = None,
    weight: int = model.WEIGHT_ONE,
    meta: Mapping[str, str] | None = None,
    wait_holds: int = 0,
    type: str = "model",  # noqa: A002 - the word of the operations.
    link: bool = False,
) -> Stream[model.ContributionPlan | model.Progress | model.ContributionAdded]:
    """Ask to check, import and announce a file."""
    request = pb.ContributionAddRequest(
        group=group,
        path=path,
        slot=slot,
        base_path=base_path,
        weight=weight,
        meta=meta,
        wait_holds=wait_holds,
        type=type,
        link=link,
    )
    return Stream("ContributionAdd", request)


def contribution_get(
    group: str, contribution: str, *, output_path: str, plain: bool = False
) -> Stream[model.Progress | model.ContributionWritten]:
    """Ask for the files of a contribution."""
    request = pb.ContributionGetRequest(
        group=group, contribution=contribution, output_path=output_path, plain=plain
    )
    return Stream("ContributionGet", request)


def contribution_list(group: str) -> Call[tuple[model.ContributionInfo, ...]]:
    """Ask for the contributions of a group."""
    request = pb.ContributionListRequest(group=group)
    return Call("ContributionList", request, lambda r: _all(r.contributions, model.ContributionInfo))


def contribution_show(group: str, contribution: str) -> Call[model.ContributionInfo]:
    """Ask for one contribution."""
    request = pb.ContributionShowRequest(group=group, contribution=contribution)
    return Call("ContributionShow", request, lambda r: decode(r.contribution, model.ContributionInfo))


def contribution_remove(group: str, target: str) -> Call[model.ContributionsRemoved]:
    """Ask to remove one's own contribution."""
    request = pb.ContributionRemoveRequest(group=group, target=target)
    return Call("ContributionRemove", request, lambda r: decode(r.removed, model.ContributionsRemoved))


def act_propose(group: str, act: model.ActRequest) -> Call[model.Act]:
    """Ask for an act, signed."""
    request = pb.ActProposeRequest(group=group, act=encode(act, t.ActRequest))
    return Call("ActPropose", request, lambda r: decode(r.act, model.Act))


def act_show(text: str) -> Call[model.ActInfo]:
    """Ask what an act says."""
    return Call("ActShow", pb.ActShowRequest(text=text), lambda r: decode(r.info, model.ActInfo))


def act_sign(text: str) -> Call[model.Act]:
    """Ask to sign an act."""
    return Call("ActSign", pb.ActSignRequest(text=text), lambda r: decode(r.act, model.Act))


def act_submit(text: str) -> Call[model.ActInfo]:
    """Ask to bring an act into its group."""
    return Call("ActSubmit", pb.ActSubmitRequest(text=text), lambda r: decode(r.info, model.ActInfo))


def erasure_list(group: str) -> Call[tuple[model.ErasureInfo, ...]]:
    """Ask how far erasures have come."""
    request = pb.ErasureListRequest(group=group)
    return Call("ErasureList", request, lambda r: _all(r.erasures, model.ErasureInfo))


def resolve(
    group: str,
    *,
    output_path: str,
    wait_s: float = 0.0,
    without: tuple[str, ...] = (),
    task: str = "",
    plan_only: bool = False,
    report_paths: tuple[str, ...] = (),
    card_path: str = "",
    shard_bytes: int = 0,
    fresh: bool = False,
) -> Stream[model.ResolvePlan | model.Progress | model.ResolveReport]:
    """Ask to merge the used contributions."""
    request = pb.ResolveRequest(
        group=group,
        output_path=output_path,
        wait_s=wait_s,
        without=without,
        task=task,
        plan_only=plan_only,
        report_paths=report_paths,
        card_path=card_path,
        shard_bytes=shard_bytes,
        fresh=fresh,
    )
    return Stream("Resolve", request)


def _all(messages: Any, kind: type[ValueT]) -> tuple[ValueT, ...]:
    return tuple(decode(message, kind) for message in messages)
