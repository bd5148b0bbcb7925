"""Python clients of a running node: :class:`AsyncClient`, which *is* a ``NodeApi``, and the sync :class:`Client`.

    with Client.of(data_dir) as node:
        for event in node.resolve("digits", output_path="/tmp/model.safetensors"):
            print(event)

Both raise the daemon's own errors. No call has a deadline of its own: a socket on the same machine fails at
once when the daemon is gone, and long work reports progress.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio
from crdt_merge_proto.v1 import node_service_pb2 as pb
from crdt_merge_proto.v1 import node_service_pb2_grpc as pb_grpc
from crdt_merge_proto.v1 import types_pb2 as t

from . import model
from .codec import METADATA_BYTES_MAX, decode, decode_event, encode, error_of, not_running
from .socket_path import check_socket, control_socket

ResponseT = TypeVar("ResponseT")

_MIB: Final = 1 << 20
_OPTIONS: Final = (
    # 1,024 groups or 100,000 contributions in one answer; gRPC's own default is 4 MiB.
    ("grpc.max_receive_message_length", 64 * _MIB),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    # Channels would otherwise share the backoff of an earlier failed attempt: a caller that waits for a
    # daemon to come up would see it a second late.
    ("grpc.use_local_subchannel_pool", 1),
)


class _Requests:
    """The requests, in one place for both clients."""

    @staticmethod
    def group_create(
        *,
        name: str,
        strategy: str,
        params: Mapping[str, str] | None,
        base_path: str | None,
        like_path: str | None,
        dtype: str,
        weight_cap: int,
        holders: int,
    ) -> pb.GroupCreateRequest:
        return pb.GroupCreateRequest(
            name=name,
            strategy=strategy,
            params=params,
            base_path=base_path,
            like_path=like_path,
            dtype=dtype,
            weight_cap=weight_cap,
            holders=holders,
        )

    @staticmethod
    def contribution_add(
        group: str,
        *,
        path: str,
        slot: str,
        base_path: str | None,
        weight: int,
        meta: Mapping[str, str] | None,
        wait_holds: int,
    ) -> pb.ContributionAddRequest:
        return pb.ContributionAddRequest(
            group=group,
            path=path,
            slot=slot,
            base_path=base_path,
            weight=weight,
            meta=meta,
            wait_holds=wait_holds,
        )

    @staticmethod
    def resolve(
        group: str, *, output_path: str, wait_s: float, without: tuple[str, ...]
    ) -> pb.ResolveRequest:
        return pb.ResolveRequest(group=group, output_path=output_path, wait_s=wait_s, without=without)


def _place(socket: Path) -> tuple[str, str]:
    """Return the path for messages and the gRPC target of a socket that exists."""
    if not check_socket(socket):
        raise not_running(str(socket))
    return str(socket), f"unix:{socket}"


class AsyncClient:
    """A ``NodeApi`` on the other side of a control socket."""

    def __init__(self, socket: Path) -> None:
        """Prepare to talk to the daemon behind ``socket``.

        Raises:
            DaemonNotRunningError: There is no such socket.
        """
        self._socket, target = _place(socket)
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._stub: Any = pb_grpc.NodeServiceStub(self._channel)

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        """Return a client of the node whose data is in ``data_dir``."""
        return cls(control_socket(data_dir))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close(None)

    async def _answer(self, call: Awaitable[ResponseT]) -> ResponseT:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise error_of(error, socket=self._socket) from None

    async def _events(self, call: Any) -> AsyncIterator[Any]:
        try:
            async for response in call:
                if (event := decode_event(response)) is not None:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise error_of(error, socket=self._socket) from None
        finally:
            call.cancel()

    async def version(self) -> model.VersionInfo:
        """Return the versions of the daemon."""
        response: pb.VersionResponse = await self._answer(self._stub.Version(pb.VersionRequest()))
        return decode(response.version, model.VersionInfo)

    async def status(self) -> model.Status:
        """Return one screen of facts."""
        response: pb.StatusResponse = await self._answer(self._stub.Status(pb.StatusRequest()))
        return decode(response.status, model.Status)

    async def why(self, group: str | None = None) -> model.WhyReport:
        """Return what stands between a group (none: every group) and convergence."""
        response: pb.WhyResponse = await self._answer(self._stub.Why(pb.WhyRequest(group=group)))
        return decode(response.report, model.WhyReport)

    async def invite(self, *, expires_s: float) -> model.Invite:
        """Return a one-time token."""
        request = pb.InviteRequest(expires_s=expires_s)
        response: pb.InviteResponse = await self._answer(self._stub.Invite(request))
        return decode(response.invite, model.Invite)

    async def peer_list(self) -> tuple[model.PeerInfo, ...]:
        """Return every known peer."""
        response: pb.PeerListResponse = await self._answer(self._stub.PeerList(pb.PeerListRequest()))
        return tuple(decode(peer, model.PeerInfo) for peer in response.peers)

    async def peer_block(self, peer: str) -> model.PeerInfo:
        """Disconnect a peer and refuse it until unblocked."""
        request = pb.PeerBlockRequest(peer=peer)
        response: pb.PeerBlockResponse = await self._answer(self._stub.PeerBlock(request))
        return decode(response.peer, model.PeerInfo)

    async def peer_unblock(self, peer: str) -> model.PeerInfo:
        """Let a peer in again."""
        request = pb.PeerUnblockRequest(peer=peer)
        response: pb.PeerUnblockResponse = await self._answer(self._stub.PeerUnblock(request))
        return decode(response.peer, model.PeerInfo)

    def group_create(
        self,
        *,
        name: str,
        strategy: str,
        params: Mapping[str, str] | None = None,
        base_path: str | None = None,
        like_path: str | None = None,
        dtype: str = "",
        weight_cap: int = 0,
        holders: int = 0,
    ) -> AsyncIterator[model.Progress | model.GroupInfo]:
        """Create a group; progress, then the group."""
        request = _Requests.group_create(
            name=name,
            strategy=strategy,
            params=params,
            base_path=base_path,
            like_path=like_path,
            dtype=dtype,
            weight_cap=weight_cap,
            holders=holders,
        )
        return self._events(self._stub.GroupCreate(request))

    async def group_list(self) -> tuple[model.GroupInfo, ...]:
        """Return all known groups."""
        response: pb.GroupListResponse = await self._answer(self._stub.GroupList(pb.GroupListRequest()))
        return tuple(decode(group, model.GroupInfo) for group in response.groups)

    async def group_show(self, group: str) -> model.GroupDetail:
        """Return a group with its policy and contributions."""
        request = pb.GroupShowRequest(group=group)
        response: pb.GroupShowResponse = await self._answer(self._stub.GroupShow(request))
        return decode(response.detail, model.GroupDetail)

    async def group_follow(self, group: str, *, follow: bool) -> model.GroupInfo:
        """Fetch the blobs of a group from now on, or stop it."""
        request = pb.GroupFollowRequest(group=group, follow=follow)
        response: pb.GroupFollowResponse = await self._answer(self._stub.GroupFollow(request))
        return decode(response.group, model.GroupInfo)

    async def policy_show(self, group: str) -> model.PolicyInfo:
        """Return the current policy."""
        request = pb.PolicyShowRequest(group=group)
        response: pb.PolicyShowResponse = await self._answer(self._stub.PolicyShow(request))
        return decode(response.policy, model.PolicyInfo)

    def policy_set(
        self, group: str, changes: model.PolicyChanges
    ) -> AsyncIterator[model.Progress | model.PolicyInfo]:
        """Announce the next policy; progress, then the policy."""
        request = pb.PolicySetRequest(group=group, changes=encode(changes, t.PolicyChanges))
        return self._events(self._stub.PolicySet(request))

    def contribution_add(
        self,
        group: str,
        *,
        path: str,
        slot: str = "main",
        base_path: str | None = None,
        weight: int = model.WEIGHT_ONE,
        meta: Mapping[str, str] | None = None,
        wait_holds: int = 0,
    ) -> AsyncIterator[model.ContributionPlan | model.Progress | model.ContributionAdded]:
        """Contribute a safetensors file; its plan, progress, then the contribution."""
        request = _Requests.contribution_add(
            group,
            path=path,
            slot=slot,
            base_path=base_path,
            weight=weight,
            meta=meta,
            wait_holds=wait_holds,
        )
        return self._events(self._stub.ContributionAdd(request))

    async def contribution_list(self, group: str) -> tuple[model.ContributionInfo, ...]:
        """Return the contributions of a group."""
        request = pb.ContributionListRequest(group=group)
        response: pb.ContributionListResponse = await self._answer(self._stub.ContributionList(request))
        return tuple(decode(item, model.ContributionInfo) for item in response.contributions)

    async def contribution_show(self, group: str, contribution: str) -> model.ContributionInfo:
        """Return one contribution."""
        request = pb.ContributionShowRequest(group=group, contribution=contribution)
        response: pb.ContributionShowResponse = await self._answer(self._stub.ContributionShow(request))
        return decode(response.contribution, model.ContributionInfo)

    async def contribution_remove(self, group: str, target: str) -> model.ContributionsRemoved:
        """Remove one's own contribution, by tag or slot."""
        request = pb.ContributionRemoveRequest(group=group, target=target)
        response: pb.ContributionRemoveResponse = await self._answer(self._stub.ContributionRemove(request))
        return decode(response.removed, model.ContributionsRemoved)

    def resolve(
        self, group: str, *, output_path: str, wait_s: float = 0.0, without: tuple[str, ...] = ()
    ) -> AsyncIterator[model.ResolvePlan | model.Progress | model.ResolveReport]:
        """Merge the used contributions into a file; plan, progress, then the report."""
        request = _Requests.resolve(group, output_path=output_path, wait_s=wait_s, without=without)
        return self._events(self._stub.Resolve(request))
