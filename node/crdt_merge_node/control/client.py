"""Python clients of a running node: :class:`AsyncClient`, itself a ``NodeApi``, and a sync :class:`Client`.

    with Client.of(data_dir) as node:
        for event in node.resolve("digits", output_path="/tmp/model.safetensors"):
            print(event)

Both have the methods of ``NodeApi``, where they are documented, and raise the daemon's own errors. No call
has a deadline unless asked for: a socket on the same machine fails at once when the daemon is gone, and long
work reports progress.
"""

# ruff: noqa: D102 - the methods are those of NodeApi, documented there once.

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import grpc
from crdt_merge_proto.v1 import node_service_pb2 as pb
from crdt_merge_proto.v1 import node_service_pb2_grpc as pb_grpc

from crdt_merge_node.errors import ControlError

from . import calls, model
from .calls import Call
from .codec import METADATA_BYTES_MAX, decode_event, error_of
from .socket_path import control_socket, require_socket

ValueT = TypeVar("ValueT")

_MIB: Final = 1 << 20
_OPTIONS: Final = (
    # 1,024 groups or 100,000 contributions in one answer; gRPC's own default is 4 MiB.
    ("grpc.max_receive_message_length", 64 * _MIB),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    # Channels would otherwise share the backoff of an earlier failed attempt: a caller that waits for a
    # daemon to come up would see it a second late.
    ("grpc.use_local_subchannel_pool", 1),
)


def _target(socket: Path) -> str:
    require_socket(socket)
    return f"unix:{socket}"


class ClientClosedError(ControlError):
    """A client was asked after it was closed."""


class AsyncClient:
    """A ``NodeApi`` on the other side of a control socket.

    Raises:
        DaemonNotRunningError: There is no such socket.
    """

    def __init__(self, socket: Path) -> None:
        # Here and not above: the command line has no use for it, and it takes as long as all of gRPC.
        import grpc.aio

        self._socket = socket
        self._channel = grpc.aio.insecure_channel(_target(socket), options=_OPTIONS)
        self._closed_error = grpc.aio.UsageError
        self._calls: Any = pb_grpc.NodeServiceStub(self._channel)
        self._is_closed = False

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
        self._is_closed = True
        await self._channel.close(None)

    @property
    def _stub(self) -> Any:
        if self._is_closed:
            raise ClientClosedError("this client of a node was closed.")
        return self._calls

    async def _answer(self, call: Call[ValueT]) -> ValueT:
        try:
            return call.read(await getattr(self._stub, call.method)(call.request))
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None
        except self._closed_error as error:
            raise ClientClosedError(f"the client was closed: {error}.") from None

    async def _events(self, call: Any) -> AsyncIterator[Any]:
        try:
            async for response in call:
                if (event := decode_event(response)) is not None:
                    yield event
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None
        except self._closed_error as error:
            raise ClientClosedError(f"the client was closed: {error}.") from None
        finally:
            call.cancel()

    async def version(self) -> model.VersionInfo:
        return await self._answer(calls.version())

    async def status(self) -> model.Status:
        return await self._answer(calls.status())

    async def why(self, group: str | None = None) -> model.WhyReport:
        return await self._answer(calls.why(group))

    async def invite(self, *, expires_s: float) -> model.Invite:
        return await self._answer(calls.invite(expires_s))

    def events(
        self,
        *,
        after: int | None = None,
        age_s: float | None = None,
        last: int = 0,
        level: str = "info",
        follow: bool = False,
    ) -> AsyncIterator[model.LogEvent | model.EventsMissed]:
        request = calls.events(after=after, age_s=age_s, last=last, level=level, follow=follow)
        return self._events(self._stub.Events(request))

    async def log_level(self, level: str | None = None) -> model.LogLevel:
        return await self._answer(calls.log_level(level))

    async def peer_list(self) -> tuple[model.PeerInfo, ...]:
        return await self._answer(calls.peer_list())

    async def peer_show(self, peer: str) -> model.PeerDetail:
        return await self._answer(calls.peer_show(peer))

    async def peer_block(self, peer: str) -> model.PeerInfo:
        return await self._answer(calls.peer_block(peer))

    async def peer_unblock(self, peer: str) -> model.PeerInfo:
        return await self._answer(calls.peer_unblock(peer))

    async def peer_forget(self, peer: str) -> model.PeerInfo:
        return await self._answer(calls.peer_forget(peer))

    async def certificate_show(self) -> model.CertificateInfo:
        return await self._answer(calls.certificate_show())

    async def certificate_renew(self) -> model.CertificateInfo:
        return await self._answer(calls.certificate_renew())

    def leave(
        self, *, copies: int = 0, wait_s: float = 0.0, accept_loss: bool = False
    ) -> AsyncIterator[model.LeavePlan | model.Progress | model.LeaveReport]:
        request = pb.LeaveRequest(copies=copies, wait_s=wait_s, accept_loss=accept_loss)
        return self._events(self._stub.Leave(request))

    def backup(
        self, *, path: str, with_keys: bool = False, copy: bool = False
    ) -> AsyncIterator[model.Progress | model.BackupReport]:
        request = pb.BackupRequest(path=path, with_keys=with_keys, copy=copy)
        return self._events(self._stub.Backup(request))

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
        request = pb.GroupCreateRequest(
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
        return await self._answer(calls.group_list())

    async def group_show(self, group: str) -> model.GroupDetail:
        return await self._answer(calls.group_show(group))

    async def group_follow(self, group: str, *, follow: bool) -> model.GroupInfo:
        return await self._answer(calls.group_follow(group, follow=follow))

    async def policy_show(self, group: str) -> model.PolicyInfo:
        return await self._answer(calls.policy_show(group))

    def policy_set(
        self, group: str, changes: model.PolicyChanges
    ) -> AsyncIterator[model.Progress | model.PolicyInfo]:
        return self._events(self._stub.PolicySet(calls.policy_set(group, changes)))

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
        type: str = "model",  # noqa: A002 - the word of the operations.
        link: bool = False,
    ) -> AsyncIterator[model.ContributionPlan | model.Progress | model.ContributionAdded]:
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
        return self._events(self._stub.ContributionAdd(request))

    def contribution_get(
        self, group: str, contribution: str, *, output_path: str, plain: bool = False
    ) -> AsyncIterator[model.Progress | model.ContributionWritten]:
        request = pb.ContributionGetRequest(
            group=group, contribution=contribution, output_path=output_path, plain=plain
        )
        return self._events(self._stub.ContributionGet(request))

    async def contribution_list(self, group: str) -> tuple[model.ContributionInfo, ...]:
        return await self._answer(calls.contribution_list(group))

    async def contribution_show(self, group: str, contribution: str) -> model.ContributionInfo:
        return await self._answer(calls.contribution_show(group, contribution))

    async def contribution_remove(self, group: str, target: str) -> model.ContributionsRemoved:
        return await self._answer(calls.contribution_remove(group, target))

    def resolve(
        self,
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
    ) -> AsyncIterator[model.ResolvePlan | model.Progress | model.ResolveReport]:
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
        )
        return self._events(self._stub.Resolve(request))


class Client:
    """The same methods, blocking; streams are plain iterators. For scripts, notebooks and the command line.

    Args:
        timeout_s: How long a single answer may take; none: as long as it takes. Streams have no such limit.

    Raises:
        DaemonNotRunningError: There is no such socket.
        TimedOutError: From any call with a single answer: it took too long.
    """

    def __init__(self, socket: Path, *, timeout_s: float | None = None) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(_target(socket), options=_OPTIONS)
        self._stub: Any = pb_grpc.NodeServiceStub(self._channel)

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        """Return a client of the node whose data is in ``data_dir``."""
        return cls(control_socket(data_dir))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def _answer(self, call: Call[ValueT]) -> ValueT:
        try:
            return call.read(getattr(self._stub, call.method)(call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None

    def _events(self, call: Any) -> Iterator[Any]:
        try:
            for response in call:
                if (event := decode_event(response)) is not None:
                    yield event
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None
        finally:
            call.cancel()

    def version(self) -> model.VersionInfo:
        return self._answer(calls.version())

    def status(self) -> model.Status:
        return self._answer(calls.status())

    def why(self, group: str | None = None) -> model.WhyReport:
        return self._answer(calls.why(group))

    def invite(self, *, expires_s: float) -> model.Invite:
        return self._answer(calls.invite(expires_s))

    def events(
        self,
        *,
        after: int | None = None,
        age_s: float | None = None,
        last: int = 0,
        level: str = "info",
        follow: bool = False,
    ) -> Iterator[model.LogEvent | model.EventsMissed]:
        request = calls.events(after=after, age_s=age_s, last=last, level=level, follow=follow)
        return self._events(self._stub.Events(request))

    def log_level(self, level: str | None = None) -> model.LogLevel:
        return self._answer(calls.log_level(level))

    def peer_list(self) -> tuple[model.PeerInfo, ...]:
        return self._answer(calls.peer_list())

    def peer_show(self, peer: str) -> model.PeerDetail:
        return self._answer(calls.peer_show(peer))

    def peer_block(self, peer: str) -> model.PeerInfo:
        return self._answer(calls.peer_block(peer))

    def peer_unblock(self, peer: str) -> model.PeerInfo:
        return self._answer(calls.peer_unblock(peer))

    def peer_forget(self, peer: str) -> model.PeerInfo:
        return self._answer(calls.peer_forget(peer))

    def certificate_show(self) -> model.CertificateInfo:
        return self._answer(calls.certificate_show())

    def certificate_renew(self) -> model.CertificateInfo:
        return self._answer(calls.certificate_renew())

    def leave(
        self, *, copies: int = 0, wait_s: float = 0.0, accept_loss: bool = False
    ) -> Iterator[model.LeavePlan | model.Progress | model.LeaveReport]:
        request = pb.LeaveRequest(copies=copies, wait_s=wait_s, accept_loss=accept_loss)
        return self._events(self._stub.Leave(request))

    def backup(
        self, *, path: str, with_keys: bool = False, copy: bool = False
    ) -> Iterator[model.Progress | model.BackupReport]:
        request = pb.BackupRequest(path=path, with_keys=with_keys, copy=copy)
        return self._events(self._stub.Backup(request))

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
    ) -> Iterator[model.Progress | model.GroupInfo]:
        request = pb.GroupCreateRequest(
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

    def group_list(self) -> tuple[model.GroupInfo, ...]:
        return self._answer(calls.group_list())

    def group_show(self, group: str) -> model.GroupDetail:
        return self._answer(calls.group_show(group))

    def group_follow(self, group: str, *, follow: bool) -> model.GroupInfo:
        return self._answer(calls.group_follow(group, follow=follow))

    def policy_show(self, group: str) -> model.PolicyInfo:
        return self._answer(calls.policy_show(group))

    def policy_set(
        self, group: str, changes: model.PolicyChanges
    ) -> Iterator[model.Progress | model.PolicyInfo]:
        return self._events(self._stub.PolicySet(calls.policy_set(group, changes)))

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
        type: str = "model",  # noqa: A002 - the word of the operations.
        link: bool = False,
    ) -> Iterator[model.ContributionPlan | model.Progress | model.ContributionAdded]:
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
        return self._events(self._stub.ContributionAdd(request))

    def contribution_get(
        self, group: str, contribution: str, *, output_path: str, plain: bool = False
    ) -> Iterator[model.Progress | model.ContributionWritten]:
        request = pb.ContributionGetRequest(
            group=group, contribution=contribution, output_path=output_path, plain=plain
        )
        return self._events(self._stub.ContributionGet(request))

    def contribution_list(self, group: str) -> tuple[model.ContributionInfo, ...]:
        return self._answer(calls.contribution_list(group))

    def contribution_show(self, group: str, contribution: str) -> model.ContributionInfo:
        return self._answer(calls.contribution_show(group, contribution))

    def contribution_remove(self, group: str, target: str) -> model.ContributionsRemoved:
        return self._answer(calls.contribution_remove(group, target))

    def resolve(
        self,
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
    ) -> Iterator[model.ResolvePlan | model.Progress | model.ResolveReport]:
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
        )
        return self._events(self._stub.Resolve(request))
