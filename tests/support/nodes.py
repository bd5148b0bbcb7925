"""A node for tests of the control plane and the command line: plain answers, every request written down."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any

from crdt_merge_node.control.model import (
    Act,
    ActInfo,
    ActItem,
    ActRequest,
    Alarm,
    BackupReport,
    CertificateInfo,
    ContributionAdded,
    ContributionInfo,
    ContributionPlan,
    ContributionsRemoved,
    ContributionWritten,
    ErasureInfo,
    ErasureNode,
    EventsMissed,
    GroupDetail,
    GroupInfo,
    Invite,
    LeaveItem,
    LeavePlan,
    LeaveReport,
    LogEvent,
    LogLevel,
    OutputInfo,
    PeerDetail,
    PeerExchange,
    PeerInfo,
    PolicyChanges,
    PolicyInfo,
    Progress,
    Reason,
    ResolvePlan,
    ResolveReport,
    Status,
    VersionInfo,
    WhyGroup,
    WhyReport,
    WrittenFile,
)
from crdt_merge_node.errors import NotFoundError
from crdt_merge_protocol.errors import CrdtMergeError

NODE, PEER, GROUP = "a1" * 32, "b2" * 32, "c3" * 32
OWN_TAG, THEIR_TAG = "d4" * 32, "e5" * 32
KEY, DIGEST, ROOT = "f6" * 32, "07" * 32, "18" * 32
NOW = 1_800_000_000.0

ALIVE = PeerInfo(
    id=PEER,
    name="beta",
    state="alive",
    addresses=("10.0.0.2:7946",),
    direction="outbound",
    since=NOW - 60,
    last_received=NOW - 1,
    last_sync=NOW - 5,
    bytes_in=1000,
    bytes_out=2000,
    is_converged=False,
)
GONE = PeerInfo(id=PEER, name="beta", state="left", since=NOW - 60)
CERTIFICATE = CertificateInfo(
    node=NODE,
    cluster=ROOT,
    begins=NOW - 100 * 86400,
    renews=NOW + 400 * 86400,
    expires=NOW + 725 * 86400,
    ca_expires=NOW + 3000 * 86400,
    last_attempt=NOW - 60,
    last_error="10.0.0.1:7946 does not answer within 5 s.",
    next_attempt=NOW + 3600,
)
GROUP_INFO = GroupInfo(
    id=GROUP,
    name="digits",
    strategy="ties",
    operations=7,
    contributions=2,
    used=1,
    pending=1,
    missing_blobs=2,
    missing_bytes=3 << 20,
    sync_root=ROOT,
    used_root=ROOT,
    resolve_key=KEY,
    live_peers=1,
    is_converged=False,
)
POLICY = PolicyInfo(
    group=GROUP,
    group_name="digits",
    strategy="ties",
    strategy_version=1,
    params={"density": "0.2"},
    schema=ROOT,
    tensors=4,
    nbytes=1 << 20,
    base=DIGEST,
    weight_cap=16 << 32,
    seed_rule="root",
    admins=(NODE,),
)
OWN = ContributionInfo(
    tag=OWN_TAG,
    group=GROUP,
    author=NODE,
    author_name="alpha",
    is_own=True,
    content=DIGEST,
    digest=KEY,
    weight=3 << 31,
    state="used",
    tensors=4,
    nbytes=1 << 20,
    depth=3,
    meta={"note": "first"},
)
THEIRS = ContributionInfo(
    tag=THEIR_TAG,
    group=GROUP,
    author=PEER,
    state="missing",
    reason="2 blobs are not here yet",
    missing_blobs=2,
)
ALARM = Alarm(severity="error", code="E1502", message="the disk is full", hint="make room", since=NOW - 9)
STATUS = Status(
    is_healthy=True,
    node=NODE,
    name="alpha",
    cluster=ROOT,
    cluster_name="dev",
    version="0.1.0",
    pid=42,
    started=NOW - 3600,
    now=NOW,
    listen="0.0.0.0:7946",
    advertise=("10.0.0.1:7946",),
    data_dir="/data",
    store_bytes=5 << 20,
    free_bytes=7 << 30,
    peers=(ALIVE,),
    groups=(GROUP_INFO,),
)
WHY = WhyReport(
    now=NOW,
    groups=(
        WhyGroup(
            group=GROUP,
            name="digits",
            is_converged=False,
            sync_root=ROOT,
            live_peers=1,
            reasons=(
                Reason(
                    subject=PEER,
                    subject_name="beta",
                    lacks="3 operations",
                    missing=(OWN_TAG,),
                    since=NOW - 12,
                    waiting="dialling 10.0.0.2:7946, attempt 14",
                    remedy="crdt-merge-node peer unblock beta",
                ),
            ),
        ),
    ),
)

EVENTS = (
    LogEvent(seq=7, time=NOW - 60, level="info", event="peer.joined", fields={"peer": PEER}),
    EventsMissed(count=3),
    LogEvent(
        seq=11,
        time=NOW - 5,
        level="warning",
        event="peer.refused",
        fields={"peer": PEER, "reason": "blocked\x1b[2J"},
        numbers={"count": 2, "duration_s": 0.25},
    ),
)

DETAIL = PeerDetail(
    peer=dataclasses.replace(ALIVE, rtt_s=0.0125, last_exchange=NOW - 4),
    now=NOW,
    remote="10.0.0.2:7946",
    connected_since=NOW - 3600,
    agent="crdt-merge-node/0.1.0",
    wire_version_min=1,
    wire_version_max=1,
    certificate_expires=NOW + 100 * 86400.0,
    queued_bytes=2048,
    missing_contributions=1,
    missing_bytes=3 << 20,
    exchanges=(
        PeerExchange(
            group=GROUP,
            group_name="digits",
            is_equal=False,
            operations=7,
            peer_operations=9,
            ended=NOW - 4,
            outcome="unequal",
            sent=1,
            received=2,
            nbytes=700,
            duration_s=0.05,
        ),
    ),
    events=(EVENTS[0], EVENTS[2]),  # type: ignore[arg-type]  # The one between is of another class.
)


ACT = Act(
    text="{}\n",
    info=ActInfo(
        group=GROUP,
        group_name="digits",
        kind="ban",
        reason="not ours",
        items=(ActItem(id=THEIR_TAG, what="model of beta in slot main"),),
        details=("strategy: ties -> linear",),
        signers=(NODE,),
        admins=(NODE, PEER),
        quorum=2,
        needed=1,
    ),
)


class FakeNode:
    """A ``NodeApi`` without a network. ``failure``, if set, is raised by the next request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.failure: BaseException | None = None
        self.status_answer = STATUS
        self.why_answer = WHY
        self.policy_answer = dataclasses.replace(POLICY, version=1, strategy="linear")
        self.peer_answer = DETAIL
        self.events_answer: tuple[LogEvent | EventsMissed, ...] = EVENTS
        self.report_answer: dict[str, Any] = {}
        self.blocks_in_resolve = False
        self.was_cancelled = asyncio.Event()

    def _note(self, request: str, *args: Any, **kwargs: Any) -> None:
        self.requests.append((request, args, kwargs))
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def last(self, request: str) -> dict[str, Any]:
        """Return the keyword arguments of the newest such request."""
        return next(kwargs for name, _, kwargs in reversed(self.requests) if name == request)

    async def version(self) -> VersionInfo:
        self._note("version")
        return VersionInfo(version="0.1.0", python="3.11", node=NODE)

    async def status(self) -> Status:
        self._note("status")
        return self.status_answer

    async def why(self, group: str | None) -> WhyReport:
        self._note("why", group=group)
        return self.why_answer

    async def invite(self, *, expires_s: float) -> Invite:
        self._note("invite", expires_s=expires_s)
        return Invite(token="cmn1-abc", expires=NOW + expires_s, addresses=("10.0.0.1:7946",))

    async def events(self, **kwargs: Any) -> AsyncIterator[LogEvent | EventsMissed]:
        self._note("events", **kwargs)
        for event in self.events_answer:
            yield event

    async def log_level(self, level: str | None) -> LogLevel:
        self._note("log_level", level=level)
        return LogLevel(level=level or "info", configured="info")

    async def peer_list(self) -> tuple[PeerInfo, ...]:
        self._note("peer_list")
        return (ALIVE,)

    async def peer_show(self, peer: str) -> PeerDetail:
        self._note("peer_show", peer=peer)
        return self.peer_answer

    async def peer_block(self, peer: str) -> PeerInfo:
        self._note("peer_block", peer=peer)
        return ALIVE

    async def peer_unblock(self, peer: str) -> PeerInfo:
        self._note("peer_unblock", peer=peer)
        return ALIVE

    async def peer_forget(self, peer: str) -> PeerInfo:
        self._note("peer_forget", peer=peer)
        return GONE

    async def certificate_show(self) -> CertificateInfo:
        self._note("certificate_show")
        return CERTIFICATE

    async def certificate_renew(self) -> CertificateInfo:
        self._note("certificate_renew")
        return CERTIFICATE

    async def leave(self, **kwargs: Any) -> AsyncIterator[LeavePlan | Progress | LeaveReport]:
        self._note("leave", **kwargs)
        item = LeaveItem(group=GROUP, group_name="digits", tag=OWN_TAG, slot="main", is_own=True, nbytes=9)
        yield LeavePlan(
            node=NODE, copies=2, peers=1, contributions=2, items=(item,), groups_behind=("digits",)
        )
        yield Progress(step="waiting until 2 others hold everything", detail="1 contribution")
        yield LeaveReport(node=NODE, told=1, lost=(item,), groups_behind=("digits",), duration_s=0.5)

    async def backup(self, **kwargs: Any) -> AsyncIterator[Progress | BackupReport]:
        self._note("backup", **kwargs)
        yield Progress(step="copying blobs", done_bytes=1, total_bytes=2)
        yield BackupReport(
            path=kwargs["path"], node=NODE, created=NOW, groups=1, operations=7, blobs=4, nbytes=9
        )

    async def group_create(self, **kwargs: Any) -> AsyncIterator[Progress | GroupInfo]:
        self._note("group_create", **kwargs)
        yield Progress(step="importing the base", done_bytes=1, total_bytes=2)
        yield GROUP_INFO

    async def group_list(self) -> tuple[GroupInfo, ...]:
        self._note("group_list")
        return (GROUP_INFO,)

    async def group_show(self, group: str) -> GroupDetail:
        self._note("group_show", group=group)
        output = OutputInfo(node=PEER, resolve_key=KEY, output_digest=DIGEST)
        return GroupDetail(
            info=GROUP_INFO,
            policy=POLICY,
            contributions=(OWN, THEIRS),
            outputs=(output,),
            acts=(ACT.info,),
        )

    async def group_follow(self, group: str, *, follow: bool) -> GroupInfo:
        self._note("group_follow", group=group, follow=follow)
        return GROUP_INFO

    async def policy_show(self, group: str) -> PolicyInfo:
        self._note("policy_show", group=group)
        return POLICY

    async def policy_set(
        self, group: str, changes: PolicyChanges, **kwargs: Any
    ) -> AsyncIterator[Progress | PolicyInfo | Act]:
        self._note("policy_set", group=group, changes=changes, **kwargs)
        is_proposed = kwargs.get("propose", False)
        yield ACT if is_proposed else self.policy_answer

    async def act_propose(self, group: str, act: ActRequest) -> Act:
        self._note("act_propose", group=group, act=act)
        return ACT

    async def act_show(self, text: str) -> ActInfo:
        self._note("act_show", text=text)
        return ACT.info

    async def act_sign(self, text: str) -> Act:
        self._note("act_sign", text=text)
        return ACT

    async def act_submit(self, text: str) -> ActInfo:
        self._note("act_submit", text=text)
        return dataclasses.replace(ACT.info, operation=ROOT)

    async def erasure_list(self, group: str) -> tuple[ErasureInfo, ...]:
        self._note("erasure_list", group=group)
        done, waiting = ErasureNode(id=NODE, name="alpha"), ErasureNode(id=PEER, name="beta")
        return (ErasureInfo(act=ACT.info, done=(done,), outstanding=(waiting,)),)

    async def contribution_add(
        self, group: str, *, path: str, slot: str, weight: int, **kwargs: Any
    ) -> AsyncIterator[ContributionPlan | Progress | ContributionAdded]:
        self._note("contribution_add", group=group, path=path, slot=slot, weight=weight, **kwargs)
        yield ContributionPlan(
            group=GROUP, group_name="digits", path=path, slot=slot, weight=weight, tensors=4, nbytes=1 << 20
        )
        yield Progress(step="copying tensors", done_bytes=1 << 19, total_bytes=1 << 20)
        yield ContributionAdded(contribution=OWN, copied_bytes=1 << 20, duration_s=0.5)

    async def contribution_get(
        self, group: str, contribution: str, **kwargs: Any
    ) -> AsyncIterator[Progress | ContributionWritten]:
        self._note("contribution_get", group=group, contribution=contribution, **kwargs)
        yield Progress(step="writing tensors", done_bytes=1 << 19, total_bytes=1 << 20)
        yield ContributionWritten(
            contribution=OWN,
            path=kwargs["output_path"],
            files=(WrittenFile(name="model.safetensors", nbytes=1 << 20, sha256=KEY),),
            nbytes=1 << 20,
            is_exact=not kwargs["plain"],
            duration_s=0.5,
        )

    async def contribution_list(self, group: str) -> tuple[ContributionInfo, ...]:
        self._note("contribution_list", group=group)
        return (OWN, THEIRS)

    async def contribution_show(self, group: str, contribution: str) -> ContributionInfo:
        self._note("contribution_show", group=group, contribution=contribution)
        return OWN

    async def contribution_remove(self, group: str, target: str) -> ContributionsRemoved:
        self._note("contribution_remove", group=group, target=target)
        return ContributionsRemoved(group=GROUP, tags=(OWN_TAG,), operation=ROOT)

    async def resolve(
        self, group: str, **kwargs: Any
    ) -> AsyncIterator[ResolvePlan | Progress | ResolveReport]:
        self._note("resolve", group=group, **kwargs)
        plan: Mapping[str, Any] = {
            "group": GROUP,
            "group_name": "digits",
            "strategy": "ties",
            "inputs": (OWN,),
        }
        yield ResolvePlan(**plan, resolve_key=KEY, excluded=(THEIRS,), read_bytes=9, output_bytes=8)
        yield Progress(step="merging", done_bytes=4, total_bytes=8)
        if self.blocks_in_resolve:
            try:
                await asyncio.Event().wait()
            finally:
                self.was_cancelled.set()
        yield ResolveReport(
            **plan,
            resolve_key=KEY,
            path=kwargs["output_path"],
            provenance_path=f"{kwargs['output_path']}.provenance.json",
            output_digest=DIGEST,
            file_sha256=ROOT,
            nbytes=8,
            **self.report_answer,
        )


def absent(name: str) -> CrdtMergeError:
    """Return what a node raises for an unknown name."""
    return NotFoundError(f"no group is called {name!r}.", hint="`group list` shows them.")
