"""The calls of the control service as values, so that the async and the sync client cannot drift apart."""

from __future__ import annotations

from collections.abc import Callable
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


def version() -> Call[model.VersionInfo]:
    """Ask for the versions of the daemon."""
    return Call("Version", pb.VersionRequest(), lambda r: decode(r.version, model.VersionInfo))


def status() -> Call[model.Status]:
    """Ask for one screen of facts."""
    return Call("Status", pb.StatusRequest(), lambda r: decode(r.status, model.Status))


def why(group: str | None) -> Call[model.WhyReport]:
    """Ask what stands in the way of convergence."""
    return Call("Why", pb.WhyRequest(group=group), lambda r: decode(r.report, model.WhyReport))


def invite(expires_s: float) -> Call[model.Invite]:
    """Ask for a token."""
    return Call("Invite", pb.InviteRequest(expires_s=expires_s), lambda r: decode(r.invite, model.Invite))


def log_level(level: str | None) -> Call[model.LogLevel]:
    """Ask for the level of the log, or for another one."""
    return Call("LogLevel", pb.LogLevelRequest(level=level), lambda r: decode(r.level, model.LogLevel))


def events(
    *, after: int | None, age_s: float | None, last: int, level: str, follow: bool
) -> pb.EventsRequest:
    """Return the request of a stream, whose responses ``decode_event`` reads."""
    return pb.EventsRequest(after=after, age_s=age_s, last=last, level=level, follow=follow)


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


def policy_set(group: str, changes: model.PolicyChanges) -> pb.PolicySetRequest:
    """Return the request of a stream, whose responses ``decode_event`` reads."""
    return pb.PolicySetRequest(group=group, changes=encode(changes, t.PolicyChanges))


def _all(messages: Any, kind: type[ValueT]) -> tuple[ValueT, ...]:
    return tuple(decode(message, kind) for message in messages)
