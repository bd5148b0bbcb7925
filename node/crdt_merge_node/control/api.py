"""``NodeApi``: everything a person or a program can ask of a running node, as plain Python.

gRPC is a thin shell over this protocol, because gRPC cannot be simulated; tests and the simulator call the
object itself. The client has the same methods, so that code written against one runs against the other.

Names. A group, peer or contribution is named by its id, an unambiguous prefix of it (four hex digits or
more), or its name. What is not found raises ``NotFoundError``; nothing ever falls back to a default.
Paths are absolute paths on the daemon's machine: tensors never travel through gRPC.
Streams. Long work is an async iterator: its plan, if it has one, then any number of ``Progress``, then
exactly one final value. Closing the iterator early cancels the work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from .model import (
    Act,
    ActInfo,
    ActRequest,
    BackupReport,
    CertificateInfo,
    ContributionAdded,
    ContributionInfo,
    ContributionPlan,
    ContributionsRemoved,
    ContributionWritten,
    ErasureInfo,
    EventsMissed,
    GroupDetail,
    GroupInfo,
    Invite,
    LeavePlan,
    LeaveReport,
    LogEvent,
    LogLevel,
    PeerDetail,
    PeerInfo,
    PolicyChanges,
    PolicyInfo,
    Progress,
    ResolvePlan,
    ResolveReport,
    Status,
    VersionInfo,
    WhyReport,
)


class NodeApi(Protocol):
    """A running node. All errors are ``CrdtMergeError``; anything else is a bug."""

    async def version(self) -> VersionInfo:
        """Return the versions of the daemon."""

    async def status(self) -> Status:
        """Return one screen of facts; cheap enough to poll every second."""

    async def why(self, group: str | None) -> WhyReport:
        """Return what stands between a group (none: every group) and convergence."""

    async def invite(self, *, expires_s: float) -> Invite:
        """Return a one-time token. Refused by a node that does not hold the cluster's CA key."""

    def events(
        self,
        *,
        after: int | None = None,
        age_s: float | None = None,
        last: int = 0,
        level: str = "info",
        follow: bool = False,
    ) -> AsyncIterator[LogEvent | EventsMissed]:
        """Tell what happened lately, the oldest first; with ``follow`` go on until the node stops.

        Args:
            after: Only events later than this number; larger than any of this life of the daemon: all.
            age_s: Only events at most this old.
            last: Only so many of the newest that are kept; 0: all.
            level: Only events at least as important.
            follow: Go on with what happens. ``EventsMissed`` says where somebody was too slow.
        """
        ...

    async def log_level(self, level: str | None) -> LogLevel:
        """Return from which level up lines go to standard error, having set it if one is given."""

    async def peer_list(self) -> tuple[PeerInfo, ...]:
        """Return every known peer, blocked ones included."""

    async def peer_show(self, peer: str) -> PeerDetail:
        """Return all about one peer, with the story of the last events that name it."""

    async def peer_block(self, peer: str) -> PeerInfo:
        """Disconnect a peer and refuse it until unblocked, also after a restart."""

    async def peer_unblock(self, peer: str) -> PeerInfo:
        """Let a peer in again and dial it."""

    async def peer_forget(self, peer: str) -> PeerInfo:
        """Give up a peer that will not come back: it is not dialled any more, until it comes by itself."""

    async def certificate_show(self) -> CertificateInfo:
        """Return the terms of this node's certificate, and how renewing it goes."""

    async def certificate_renew(self) -> CertificateInfo:
        """Get a new certificate now, whether it is due or not."""

    def leave(
        self, *, copies: int, wait_s: float, accept_loss: bool
    ) -> AsyncIterator[LeavePlan | Progress | LeaveReport]:
        """Leave the cluster for good, and stop.

        Args:
            copies: Other nodes that shall hold everything first; 0: two, or as many as there are.
            wait_s: How long to wait for that; 0: not at all.
            accept_loss: Leave even if something is lost.
        """
        ...

    def backup(self, *, path: str, with_keys: bool, copy: bool) -> AsyncIterator[Progress | BackupReport]:
        """Write everything that this node stores to a new directory; an unfinished one is finished.

        Args:
            path: The directory; its parent exists.
            with_keys: Put the node's keys in, and the CA's where this node holds it.
            copy: Copy every byte, instead of giving files a second name where that is possible.
        """
        ...

    def group_create(
        self,
        *,
        name: str,
        strategy: str,
        params: Mapping[str, str],
        base_path: str | None,
        like_path: str | None,
        dtype: str,
        weight_cap: int,
        holders: int,
        admins: tuple[str, ...] = (),
        quorum: int = 0,
        admitted: bool = False,
    ) -> AsyncIterator[Progress | GroupInfo]:
        """Create a group of which this node is an administrator, and announce it.

        Args:
            base_path: Safetensors file that becomes the base and gives the schema; imported.
            like_path: Safetensors file that gives the schema only. Exactly one of the two, or both. The
                directory of an adapter makes a group of adapters.
            dtype: Output element type such as ``F32``; empty: that of the base, else the widest input.
            weight_cap: Largest weight of a contribution, over 2^32; 0: the default of the protocol.
            holders: Other nodes that must hold a contribution before it counts.
            admins: Other administrators, for life: nodes' ids, or names of known peers.
            quorum: Administrators that have to sign an act; 0: one.
            admitted: Only authors that administrators admitted count.
        """
        ...

    async def group_list(self) -> tuple[GroupInfo, ...]:
        """Return all groups of the cluster that this node knows, by name then id."""

    async def group_show(self, group: str) -> GroupDetail:
        """Return a group with its policy, contributions and announced outputs."""

    async def group_follow(self, group: str, *, follow: bool) -> GroupInfo:
        """Fetch the blobs of a group from now on, or stop it. Operations are relayed either way."""

    async def policy_show(self, group: str) -> PolicyInfo:
        """Return the current policy."""

    def policy_set(
        self, group: str, changes: PolicyChanges, *, propose: bool = False
    ) -> AsyncIterator[Progress | PolicyInfo | Act]:
        """Sign and announce the next version of the policy. Refused by a node that is no admin.

        With ``propose`` it is signed and not announced: the last value is the act, for others to sign.
        """
        ...

    def contribution_add(
        self,
        group: str,
        *,
        path: str,
        slot: str,
        base_path: str | None,
        weight: int,
        meta: Mapping[str, str],
        wait_holds: int,
        type: str = "model",  # noqa: A002 - the word of the operations.
        link: bool = False,
    ) -> AsyncIterator[ContributionPlan | Progress | ContributionAdded]:
        """Check a safetensors file or a directory of shards against the group, then import and announce it.

        The plan comes first; all that can be refused is refused before it, without copying a byte.

        Args:
            base_path: The model that the file was trained from: refused unless it is the group's base.
            weight: Over 2^32.
            meta: Notes for people; erasable, never part of an output.
            wait_holds: Nodes that must confirm that they hold it before the final value (PROTOCOL R21).
            path: A file, a directory of shards, or in a group of adapters a directory as PEFT saves them.
            type: ``model``, ``adapter`` (as a directory of one is taken anyway), or what kind of artefact the
                file is; its header says of which contribution.
            link: Where blocks cannot be shared, keep the files by another name instead of copying them:
                whatever is written to them later damages what is here.
        """
        ...

    def contribution_get(
        self, group: str, contribution: str, *, output_path: str, plain: bool = False
    ) -> AsyncIterator[Progress | ContributionWritten]:
        """Write the files of a contribution, byte for byte as its author had them.

        Args:
            contribution: Tag, digest, or one's own slot.
            output_path: A file, or a directory if its author had one. Appears whole or not at all.
            plain: One file in the layout of this program instead.
        """
        ...

    async def contribution_list(self, group: str) -> tuple[ContributionInfo, ...]:
        """Return the contributions of a group: used ones first, then by state, author, slot."""

    async def contribution_show(self, group: str, contribution: str) -> ContributionInfo:
        """Return one contribution, named by tag, digest, or one's own slot."""

    async def act_propose(self, group: str, act: ActRequest) -> Act:
        """Return an act with the signature of this node, an administrator; nothing happens yet."""

    async def act_show(self, text: str) -> ActInfo:
        """Return what the text of an act says, and who has signed it."""

    async def act_sign(self, text: str) -> Act:
        """Return an act with the signature of this node, an administrator of the group, added."""

    async def act_submit(self, text: str) -> ActInfo:
        """Bring an act into its group, on any node: it takes effect everywhere. Refused without a quorum."""

    async def erasure_list(self, group: str) -> tuple[ErasureInfo, ...]:
        """Return the erasures of a group, and which nodes said that the bytes are gone there."""

    async def contribution_remove(self, group: str, target: str) -> ContributionsRemoved:
        """Remove one's own contribution: a tag, or a slot with every tag in it that this node has seen."""

    def resolve(
        self,
        group: str,
        *,
        output_path: str,
        wait_s: float,
        without: tuple[str, ...],
        task: str = "",
        plan_only: bool = False,
        report_paths: tuple[str, ...] = (),
        card_path: str = "",
        shard_bytes: int = 0,
        fresh: bool = False,
    ) -> AsyncIterator[ResolvePlan | Progress | ResolveReport]:
        """Merge the used contributions into one safetensors file, or a directory of shards.

        A group of adapters writes what its policy says; an adapter is a directory as PEFT saves them.

        Args:
            wait_s: How long to wait for missing bytes; 0: fail at once with ``MissingBlobError``.
            without: Tags to leave out, which gives another resolve key.
            task: Tag or digest of the contribution whose task's model is wanted, for strategies that make one
                for each; empty: the common model.
            plan_only: End after the plan, having read no tensor.
            report_paths: Where to write what the layers look like: JSON if the name ends so, else a page.
            card_path: Where to write a model card; empty: none.
            shard_bytes: Size of tensors in one file of the output, which is a directory then; 0: one file.
            fresh: Compute everything, even what earlier outputs hold. The bytes are the same.
        """
        ...
