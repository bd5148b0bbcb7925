"""The gRPC server on the Unix socket: unpacks requests, calls the ``NodeApi``, packs answers. No logic.

Traps found by trying. Binding a *live* Unix socket silently steals it from the other daemon, so the lock on
the data directory must be held before :meth:`ControlServer.start`. The mode of the socket follows from the
umask at the moment of binding. Whoever can open the socket may do everything; there is no other login.
"""

# ruff: noqa: ARG002, N802 - names and arguments of the methods are those that gRPC calls.

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import grpc
from crdt_merge_proto.v1 import node_service_pb2 as pb
from crdt_merge_proto.v1 import node_service_pb2_grpc as pb_grpc
from crdt_merge_proto.v1 import types_pb2 as t
from crdt_merge_protocol.errors import CrdtMergeError
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crdt_merge_node.contents import MODEL
from crdt_merge_node.errors import ControlError
from crdt_merge_node.telemetry.logging import get_logger

from .api import NodeApi
from .codec import METADATA_BYTES_MAX, decode, encode, encode_event, status_of
from .model import ActRequest, PolicyChanges
from .socket_path import claim_socket

_log = get_logger()
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["NodeService"].full_name
ResponseT = TypeVar("ResponseT", bound=Message)
_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def _answer_errors(context: _Context, method: str) -> AsyncIterator[None]:
    """Turn what the API raises into a status. What is no ``CrdtMergeError`` is a bug, and logged as one."""
    try:
        yield
    except CrdtMergeError as error:
        status, text, metadata = status_of(error)
        await context.abort(status, text, metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001  The one place between a bug and the user.
        _log.exception("control.failed", method=method, error=error)
        answer = ControlError(
            f"the daemon failed in {method}: {type(error).__name__}: {error}.",
            hint="This is a bug; its log has the traceback.",
        )
        _, text, metadata = status_of(answer)
        await context.abort(grpc.StatusCode.INTERNAL, text, metadata)


async def _stream(events: AsyncIterator[Any], kind: type[ResponseT]) -> AsyncIterator[ResponseT]:
    """Pack events. However the call ends, the work behind it ends with it."""
    try:
        async for event in events:
            yield encode_event(event, kind)
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


class NodeService(pb_grpc.NodeServiceServicer):
    """A ``NodeApi`` behind gRPC."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api

    async def Version(self, request: pb.VersionRequest, context: _Context) -> pb.VersionResponse:
        """Answer ``version``."""
        async with _answer_errors(context, "version"):
            return pb.VersionResponse(version=encode(await self._api.version(), t.VersionInfo))

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusResponse:
        """Answer ``status``."""
        async with _answer_errors(context, "status"):
            return pb.StatusResponse(status=encode(await self._api.status(), t.Status))

    async def Why(self, request: pb.WhyRequest, context: _Context) -> pb.WhyResponse:
        """Answer ``why``."""
        async with _answer_errors(context, "why"):
            report = await self._api.why(request.group if request.HasField("group") else None)
            return pb.WhyResponse(report=encode(report, t.WhyReport))

    async def Invite(self, request: pb.InviteRequest, context: _Context) -> pb.InviteResponse:
        """Answer ``invite``."""
        async with _answer_errors(context, "invite"):
            invite = await self._api.invite(expires_s=request.expires_s)
            return pb.InviteResponse(invite=encode(invite, t.Invite))

    async def Events(self, request: pb.EventsRequest, context: _Context) -> AsyncIterator[pb.EventsResponse]:
        """Stream ``events``."""
        async with _answer_errors(context, "events"):
            events = self._api.events(
                after=request.after if request.HasField("after") else None,
                age_s=request.age_s if request.HasField("age_s") else None,
                last=request.last,
                level=request.level,
                follow=request.follow,
            )
            async for response in _stream(events, pb.EventsResponse):
                yield response

    async def LogLevel(self, request: pb.LogLevelRequest, context: _Context) -> pb.LogLevelResponse:
        """Answer ``log_level``."""
        async with _answer_errors(context, "log_level"):
            level = await self._api.log_level(request.level if request.HasField("level") else None)
            return pb.LogLevelResponse(level=encode(level, t.LogLevel))

    async def PeerList(self, request: pb.PeerListRequest, context: _Context) -> pb.PeerListResponse:
        """Answer ``peer_list``."""
        async with _answer_errors(context, "peer_list"):
            peers = await self._api.peer_list()
            return pb.PeerListResponse(peers=[encode(peer, t.PeerInfo) for peer in peers])

    async def PeerShow(self, request: pb.PeerShowRequest, context: _Context) -> pb.PeerShowResponse:
        """Answer ``peer_show``."""
        async with _answer_errors(context, "peer_show"):
            return pb.PeerShowResponse(detail=encode(await self._api.peer_show(request.peer), t.PeerDetail))

    async def PeerBlock(self, request: pb.PeerBlockRequest, context: _Context) -> pb.PeerBlockResponse:
        """Answer ``peer_block``."""
        async with _answer_errors(context, "peer_block"):
            return pb.PeerBlockResponse(peer=encode(await self._api.peer_block(request.peer), t.PeerInfo))

    async def PeerUnblock(self, request: pb.PeerUnblockRequest, context: _Context) -> pb.PeerUnblockResponse:
        """Answer ``peer_unblock``."""
        async with _answer_errors(context, "peer_unblock"):
            return pb.PeerUnblockResponse(peer=encode(await self._api.peer_unblock(request.peer), t.PeerInfo))

    async def PeerForget(self, request: pb.PeerForgetRequest, context: _Context) -> pb.PeerForgetResponse:
        """Answer ``peer_forget``."""
        async with _answer_errors(context, "peer_forget"):
            return pb.PeerForgetResponse(peer=encode(await self._api.peer_forget(request.peer), t.PeerInfo))

    async def CertificateShow(
        self, request: pb.CertificateShowRequest, context: _Context
    ) -> pb.CertificateShowResponse:
        """Answer ``certificate_show``."""
        async with _answer_errors(context, "certificate_show"):
            found = await self._api.certificate_show()
            return pb.CertificateShowResponse(certificate=encode(found, t.CertificateInfo))

    async def CertificateRenew(
        self, request: pb.CertificateRenewRequest, context: _Context
    ) -> pb.CertificateRenewResponse:
        """Answer ``certificate_renew``."""
        async with _answer_errors(context, "certificate_renew"):
            renewed = await self._api.certificate_renew()
            return pb.CertificateRenewResponse(certificate=encode(renewed, t.CertificateInfo))

    async def Leave(self, request: pb.LeaveRequest, context: _Context) -> AsyncIterator[pb.LeaveResponse]:
        """Stream ``leave``."""
        async with _answer_errors(context, "leave"):
            events = self._api.leave(
                copies=request.copies, wait_s=request.wait_s, accept_loss=request.accept_loss
            )
            async for response in _stream(events, pb.LeaveResponse):
                yield response

    async def Backup(self, request: pb.BackupRequest, context: _Context) -> AsyncIterator[pb.BackupResponse]:
        """Stream ``backup``."""
        async with _answer_errors(context, "backup"):
            events = self._api.backup(path=request.path, with_keys=request.with_keys, copy=request.copy)
            async for response in _stream(events, pb.BackupResponse):
                yield response

    async def GroupCreate(
        self, request: pb.GroupCreateRequest, context: _Context
    ) -> AsyncIterator[pb.GroupCreateResponse]:
        """Stream ``group_create``."""
        async with _answer_errors(context, "group_create"):
            events = self._api.group_create(
                name=request.name,
                strategy=request.strategy,
                params=dict(request.params),
                base_path=request.base_path if request.HasField("base_path") else None,
                like_path=request.like_path if request.HasField("like_path") else None,
                dtype=request.dtype,
                weight_cap=request.weight_cap,
                holders=request.holders,
                admins=tuple(request.admins),
                quorum=request.quorum,
                admitted=request.admitted,
            )
            async for response in _stream(events, pb.GroupCreateResponse):
                yield response

    async def GroupList(self, request: pb.GroupListRequest, context: _Context) -> pb.GroupListResponse:
        """Answer ``group_list``."""
        async with _answer_errors(context, "group_list"):
            groups = await self._api.group_list()
            return pb.GroupListResponse(groups=[encode(group, t.GroupInfo) for group in groups])

    async def GroupShow(self, request: pb.GroupShowRequest, context: _Context) -> pb.GroupShowResponse:
        """Answer ``group_show``."""
        async with _answer_errors(context, "group_show"):
            return pb.GroupShowResponse(
                detail=encode(await self._api.group_show(request.group), t.GroupDetail)
            )

    async def GroupFollow(self, request: pb.GroupFollowRequest, context: _Context) -> pb.GroupFollowResponse:
        """Answer ``group_follow``."""
        async with _answer_errors(context, "group_follow"):
            group = await self._api.group_follow(request.group, follow=request.follow)
            return pb.GroupFollowResponse(group=encode(group, t.GroupInfo))

    async def PolicyShow(self, request: pb.PolicyShowRequest, context: _Context) -> pb.PolicyShowResponse:
        """Answer ``policy_show``."""
        async with _answer_errors(context, "policy_show"):
            return pb.PolicyShowResponse(
                policy=encode(await self._api.policy_show(request.group), t.PolicyInfo)
            )

    async def PolicySet(
        self, request: pb.PolicySetRequest, context: _Context
    ) -> AsyncIterator[pb.PolicySetResponse]:
        """Stream ``policy_set``."""
        async with _answer_errors(context, "policy_set"):
            changes = decode(request.changes, PolicyChanges)
            events = self._api.policy_set(request.group, changes, propose=request.propose)
            async for response in _stream(events, pb.PolicySetResponse):
                yield response

    async def ContributionAdd(
        self, request: pb.ContributionAddRequest, context: _Context
    ) -> AsyncIterator[pb.ContributionAddResponse]:
        """Stream ``contribution_add``."""
        async with _answer_errors(context, "contribution_add"):
            events = self._api.contribution_add(
                request.group,
                path=request.path,
                slot=request.slot,
                base_path=request.base_path if request.HasField("base_path") else None,
                weight=request.weight,
                meta=dict(request.meta),
                wait_holds=request.wait_holds,
                type=request.type or MODEL,
                link=request.link,
            )
            async for response in _stream(events, pb.ContributionAddResponse):
                yield response

    async def ContributionGet(
        self, request: pb.ContributionGetRequest, context: _Context
    ) -> AsyncIterator[pb.ContributionGetResponse]:
        """Stream ``contribution_get``."""
        async with _answer_errors(context, "contribution_get"):
            events = self._api.contribution_get(
                request.group, request.contribution, output_path=request.output_path, plain=request.plain
            )
            async for response in _stream(events, pb.ContributionGetResponse):
                yield response

    async def ContributionList(
        self, request: pb.ContributionListRequest, context: _Context
    ) -> pb.ContributionListResponse:
        """Answer ``contribution_list``."""
        async with _answer_errors(context, "contribution_list"):
            found = await self._api.contribution_list(request.group)
            return pb.ContributionListResponse(
                contributions=[encode(item, t.ContributionInfo) for item in found]
            )

    async def ContributionShow(
        self, request: pb.ContributionShowRequest, context: _Context
    ) -> pb.ContributionShowResponse:
        """Answer ``contribution_show``."""
        async with _answer_errors(context, "contribution_show"):
            found = await self._api.contribution_show(request.group, request.contribution)
            return pb.ContributionShowResponse(contribution=encode(found, t.ContributionInfo))

    async def ContributionRemove(
        self, request: pb.ContributionRemoveRequest, context: _Context
    ) -> pb.ContributionRemoveResponse:
        """Answer ``contribution_remove``."""
        async with _answer_errors(context, "contribution_remove"):
            removed = await self._api.contribution_remove(request.group, request.target)
            return pb.ContributionRemoveResponse(removed=encode(removed, t.ContributionsRemoved))

    async def ActPropose(self, request: pb.ActProposeRequest, context: _Context) -> pb.ActProposeResponse:
        """Answer ``act_propose``."""
        async with _answer_errors(context, "act_propose"):
            act = await self._api.act_propose(request.group, decode(request.act, ActRequest))
            return pb.ActProposeResponse(act=encode(act, t.Act))

    async def ActShow(self, request: pb.ActShowRequest, context: _Context) -> pb.ActShowResponse:
        """Answer ``act_show``."""
        async with _answer_errors(context, "act_show"):
            return pb.ActShowResponse(info=encode(await self._api.act_show(request.text), t.ActInfo))

    async def ActSign(self, request: pb.ActSignRequest, context: _Context) -> pb.ActSignResponse:
        """Answer ``act_sign``."""
        async with _answer_errors(context, "act_sign"):
            return pb.ActSignResponse(act=encode(await self._api.act_sign(request.text), t.Act))

    async def ActSubmit(self, request: pb.ActSubmitRequest, context: _Context) -> pb.ActSubmitResponse:
        """Answer ``act_submit``."""
        async with _answer_errors(context, "act_submit"):
            return pb.ActSubmitResponse(info=encode(await self._api.act_submit(request.text), t.ActInfo))

    async def ErasureList(self, request: pb.ErasureListRequest, context: _Context) -> pb.ErasureListResponse:
        """Answer ``erasure_list``."""
        async with _answer_errors(context, "erasure_list"):
            found = await self._api.erasure_list(request.group)
            return pb.ErasureListResponse(erasures=[encode(each, t.ErasureInfo) for each in found])

    async def Resolve(
        self, request: pb.ResolveRequest, context: _Context
    ) -> AsyncIterator[pb.ResolveResponse]:
        """Stream ``resolve``."""
        async with _answer_errors(context, "resolve"):
            events = self._api.resolve(
                request.group,
                output_path=request.output_path,
                wait_s=request.wait_s,
                without=tuple(request.without),
                task=request.task,
                plan_only=request.plan_only,
                report_paths=tuple(request.report_paths),
                card_path=request.card_path,
                shard_bytes=request.shard_bytes,
                fresh=request.fresh,
            )
            async for response in _stream(events, pb.ResolveResponse):
                yield response


class ControlServer:
    """The listening control socket of one daemon. The caller holds the lock of the data directory."""

    def __init__(self, api: NodeApi, socket: Path) -> None:
        self.socket = socket
        self._server = grpc.aio.server(options=[("grpc.max_metadata_size", METADATA_BYTES_MAX)])
        self._health = health.aio.HealthServicer()
        pb_grpc.add_NodeServiceServicer_to_server(NodeService(api), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self) -> None:
        """Bind the socket, mode 0700, and answer.

        Raises:
            ControlError: The socket cannot be made where it has to be.
        """
        claim_socket(self.socket)
        before = os.umask(0o077)
        try:
            self._server.add_insecure_port(f"unix:{self.socket}")
        except RuntimeError as error:
            raise ControlError(f"the control socket {self.socket} cannot be bound: {error}.") from error
        finally:
            os.umask(before)
        await self._server.start()
        for service in ("", _SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def close(self, *, grace_s: float = 0.5) -> None:
        """Report NOT_SERVING, let calls end for ``grace_s``, cancel the rest, remove the socket."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self.socket.unlink(missing_ok=True)
