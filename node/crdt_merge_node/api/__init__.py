"""What a running node can be asked, implemented: ``LocalNode`` is the ``NodeApi`` of this process.

Each subject has its module; this class only says which. gRPC is a shell around it, and tests call it
directly. What reads tensors is imported by the first call that needs it: a daemon at rest is smaller for it.
"""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Mapping

from crdt_merge_protocol.limits import WIRE_VERSION_MAX
from crdt_merge_protocol.messages.join import SECRET_BYTES

from crdt_merge_node.contents import MODEL
from crdt_merge_node.control.model import (
    Act,
    ActInfo,
    ActRequest,
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
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.ports import local_addresses
from crdt_merge_node.services import Services
from crdt_merge_node.telemetry.logging import get_logger
from crdt_merge_node.transport import create_invite
from crdt_merge_node.version import VERSION

from . import acts, contributions, erasures, groups, reports
from . import events as happenings
from .binding import in_own_name
from .measuring import measured
from .naming import find_group, find_peer
from .peers import peer_detail
from .upkeep import Upkeep

log = get_logger()


@in_own_name
class LocalNode(Upkeep):
    """The API of the node in this process."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def version(self) -> VersionInfo:
        """Return the versions of the daemon."""
        return VersionInfo(
            version=VERSION,
            wire_version=WIRE_VERSION_MAX,
            python=platform.python_version(),
            node=self._services.engine.node.hex(),
        )

    async def status(self) -> Status:
        """Return one screen of facts."""
        return await reports.status(self._services)

    async def why(self, group: str | None) -> WhyReport:
        """Return what stands between a group (none: every group) and convergence."""
        known = sorted(self._services.engine.replicas)
        return await reports.why(
            self._services, known if group is None else [find_group(self._services, group)]
        )

    async def invite(self, *, expires_s: float) -> Invite:
        """Return a one-time token."""
        services = self._services
        if services.invites is None:
            raise InvalidRequestError(
                "this node does not hold the key of the cluster's CA.",
                hint="Invite from the node on which the cluster was made.",
            )
        addresses = services.endpoint.advertised or local_addresses(services.endpoint.address[1])
        expires_at = int(services.clock.now() + expires_s)
        token = await create_invite(
            services.invites,
            cluster=services.identity.cluster,
            addresses=addresses,
            secret=services.rng.bytes(SECRET_BYTES),
            expires_at=expires_at,
        )
        return Invite(
            token=token,
            expires=expires_at,
            cluster=services.identity.cluster.hex(),
            cluster_name=services.identity.cluster_name,
            addresses=addresses,
        )

    def events(
        self,
        *,
        after: int | None = None,
        age_s: float | None = None,
        last: int = 0,
        level: str = "info",
        follow: bool = False,
    ) -> AsyncIterator[LogEvent | EventsMissed]:
        """Tell what happened lately; with ``follow`` go on until the node stops."""
        return happenings.events(
            self._services, after=after, age_s=age_s, last=last, level=level, follow=follow
        )

    async def log_level(self, level: str | None = None) -> LogLevel:
        """Return from which level up lines go to standard error, having set it if one is given."""
        return happenings.change_log_level(self._services, level)

    async def peer_list(self) -> tuple[PeerInfo, ...]:
        """Return every known peer, blocked ones included."""
        return reports.peer_list(self._services)

    async def peer_show(self, peer: str) -> PeerDetail:
        """Return all about one peer, with the story of the last events that name it."""
        return peer_detail(self._services, find_peer(self._services, peer))

    async def peer_block(self, peer: str) -> PeerInfo:
        """Disconnect a peer and refuse it until unblocked, also after a restart."""
        found = find_peer(self._services, peer)
        await self._services.store.put_meta(f"blocked/{found.hex()}", b"1")
        self._services.driver.block(found, is_blocked=True)
        log.info("peer.blocked", peer=found)
        return reports.peer_info(self._services, found)

    async def peer_unblock(self, peer: str) -> PeerInfo:
        """Let a peer in again and dial it."""
        found = find_peer(self._services, peer)
        await self._services.store.delete_meta(f"blocked/{found.hex()}")
        self._services.driver.block(found, is_blocked=False)
        log.info("peer.unblocked", peer=found)
        return reports.peer_info(self._services, found)

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
        """Create a group of which this node is an administrator, and announce it."""
        return groups.create_group(
            self._services,
            name=name,
            strategy=strategy,
            params=params,
            base_path=base_path,
            like_path=like_path,
            dtype=dtype,
            weight_cap=weight_cap,
            holders=holders,
            rights=groups.Rights(admins=admins, quorum=quorum, is_admitted=admitted),
        )

    async def group_list(self) -> tuple[GroupInfo, ...]:
        """Return all groups of the cluster that this node knows, by name then id."""
        infos = [await groups.group_info(self._services, group) for group in self._services.engine.replicas]
        return tuple(sorted(infos, key=lambda info: (info.name, info.id)))

    async def group_show(self, group: str) -> GroupDetail:
        """Return a group with its policy, contributions and announced outputs."""
        return await groups.group_detail(self._services, find_group(self._services, group))

    async def group_follow(self, group: str, *, follow: bool) -> GroupInfo:
        """Fetch the blobs of a group from now on, or stop it."""
        found = find_group(self._services, group)
        await self._services.keeper.follow(found, follow=follow)
        await self._services.keeper.current(found)
        return await groups.group_info(self._services, found)

    async def policy_show(self, group: str) -> PolicyInfo:
        """Return the current policy."""
        found = find_group(self._services, group)
        return groups.policy_info(self._services, found, await self._services.keeper.current(found))

    def policy_set(
        self, group: str, changes: PolicyChanges, *, propose: bool = False
    ) -> AsyncIterator[Progress | PolicyInfo | Act]:
        """Sign the next version of the policy, and announce it unless it is only proposed."""
        return groups.change_policy(self._services, group, changes, is_proposed=propose)

    async def act_propose(self, group: str, act: ActRequest) -> Act:
        """Return an act with the signature of this node, an administrator of the group."""
        return await acts.propose(self._services, group, act)

    async def act_show(self, text: str) -> ActInfo:
        """Return what the text of an act says, and who has signed it."""
        return await acts.show(self._services, text)

    async def act_sign(self, text: str) -> Act:
        """Return an act with the signature of this node, an administrator of the group, added."""
        return await acts.sign(self._services, text)

    async def act_submit(self, text: str) -> ActInfo:
        """Bring an act into its group."""
        return await acts.submit(self._services, text)

    async def erasure_list(self, group: str) -> tuple[ErasureInfo, ...]:
        """Return the erasures of a group, and which nodes said that the bytes are gone there."""
        return erasures.erasure_list(self._services, find_group(self._services, group))

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
        type: str = MODEL,  # noqa: A002 - the word of the operations.
        link: bool = False,
    ) -> AsyncIterator[ContributionPlan | Progress | ContributionAdded]:
        """Check a file, or a directory of shards, against the group, then import and announce it."""
        from . import adding

        return adding.add_contribution(
            self._services,
            group,
            path=path,
            slot=slot,
            kind=type,
            base_path=base_path,
            weight=weight,
            meta=meta,
            wait_holds=wait_holds,
            may_link=link,
        )

    def contribution_get(
        self, group: str, contribution: str, *, output_path: str, plain: bool = False
    ) -> AsyncIterator[Progress | ContributionWritten]:
        """Write the files of a contribution, byte for byte as its author had them."""
        from . import getting

        steps = getting.get_contribution(
            self._services, group, contribution, output_path=output_path, is_plain=plain
        )
        return self._services.keeper.unused.undisturbed(steps)

    async def contribution_list(self, group: str) -> tuple[ContributionInfo, ...]:
        """Return the contributions of a group."""
        return await contributions.contribution_list(self._services, find_group(self._services, group))

    async def contribution_show(self, group: str, contribution: str) -> ContributionInfo:
        """Return one contribution, named by tag, digest, or one's own slot."""
        found = find_group(self._services, group)
        return await contributions.contribution_show(self._services, found, contribution)

    async def contribution_remove(self, group: str, target: str) -> ContributionsRemoved:
        """Remove one's own contribution: a tag, or a slot."""
        found = find_group(self._services, group)
        return await contributions.remove_contributions(self._services, found, target)

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
        """Merge the used contributions into one safetensors file, or a directory of shards."""
        from . import resolving

        request = resolving.ResolveRequest(
            output_path=output_path,
            wait_s=wait_s,
            without=without,
            task=task,
            is_plan_only=plan_only,
            report_paths=report_paths,
            card_path=card_path,
            shard_bytes=shard_bytes,
            is_fresh=fresh,
        )
        steps = self._services.keeper.unused.undisturbed(
            resolving.resolve_group(self._services, group, request)
        )
        return steps if plan_only else measured(self._services, steps)
