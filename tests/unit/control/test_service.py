"""The clients and the service, over a real Unix socket, before a node that is not there."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
import structlog
from crdt_merge_node.control import model
from crdt_merge_node.control.api import NodeApi
from crdt_merge_node.control.client import AsyncClient, Client, ClientClosedError
from crdt_merge_node.control.service import ControlServer
from crdt_merge_node.errors import ControlError, DaemonNotRunningError, NotFoundError, TimedOutError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support import nodes
from support.nodes import FakeNode


@asynccontextmanager
async def serving(node: NodeApi) -> AsyncIterator[Path]:
    """Serve ``node``; yield the path of the socket."""
    with TemporaryDirectory(dir="/tmp") as directory:
        server = ControlServer(node, Path(directory) / "control.sock")
        await server.start()
        try:
            yield server.socket
        finally:
            await server.close(grace_s=0)


async def _all(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


CALLS: dict[str, Callable[[Any], Any]] = {
    "version": lambda client: client.version(),
    "status": lambda client: client.status(),
    "why": lambda client: client.why("digits"),
    "invite": lambda client: client.invite(expires_s=60.0),
    "events": lambda client: client.events(after=3, age_s=1.5, last=2, level="debug", follow=True),
    "log_level": lambda client: client.log_level("debug"),
    "peer_list": lambda client: client.peer_list(),
    "peer_show": lambda client: client.peer_show("beta"),
    "peer_block": lambda client: client.peer_block("beta"),
    "peer_unblock": lambda client: client.peer_unblock("beta"),
    "peer_forget": lambda client: client.peer_forget("beta"),
    "certificate_show": lambda client: client.certificate_show(),
    "certificate_renew": lambda client: client.certificate_renew(),
    "leave": lambda client: client.leave(copies=2, wait_s=1.5, accept_loss=True),
    "backup": lambda client: client.backup(path="/b", with_keys=True, copy=True),
    "group_create": lambda client: client.group_create(
        name="digits",
        strategy="ties",
        params={"density": "0.2"},
        base_path=None,
        like_path="/m.safetensors",
        dtype="F32",
        weight_cap=1 << 32,
        holders=2,
        admins=("beta",),
        quorum=2,
        admitted=True,
    ),
    "group_list": lambda client: client.group_list(),
    "group_show": lambda client: client.group_show("digits"),
    "group_follow": lambda client: client.group_follow("digits", follow=False),
    "policy_show": lambda client: client.policy_show("digits"),
    "policy_set": lambda client: client.policy_set("digits", model.PolicyChanges(holders=0), propose=True),
    "contribution_add": lambda client: client.contribution_add(
        "digits",
        path="/m.safetensors",
        slot="main",
        base_path="/b.safetensors",
        weight=3,
        meta={"k": "v"},
        wait_holds=1,
        type="fisher_diag",
        link=True,
    ),
    "contribution_get": lambda client: client.contribution_get(
        "digits", "main", output_path="/o", plain=True
    ),
    "contribution_list": lambda client: client.contribution_list("digits"),
    "contribution_show": lambda client: client.contribution_show("digits", "main"),
    "contribution_remove": lambda client: client.contribution_remove("digits", "main"),
    "act_propose": lambda client: client.act_propose(
        "digits",
        model.ActRequest(
            kind="revoke", targets=("beta",), reason="stolen", heads=("ab12",), counts_nothing=True
        ),
    ),
    "act_show": lambda client: client.act_show("{}"),
    "act_sign": lambda client: client.act_sign("{}"),
    "act_submit": lambda client: client.act_submit("{}"),
    "erasure_list": lambda client: client.erasure_list("digits"),
    "resolve": lambda client: client.resolve(
        "digits",
        output_path="/o",
        wait_s=2.5,
        without=("ab12",),
        task="cd34",
        plan_only=True,
        report_paths=("/r.html", "/r.json"),
        card_path="/c",
        shard_bytes=7,
        fresh=True,
    ),
}


def test_every_method_of_the_api_is_tested() -> None:
    methods = {name for name, _ in inspect.getmembers(NodeApi, inspect.isfunction) if name[0] != "_"}

    assert set(CALLS) == methods


@pytest.mark.parametrize("client", [AsyncClient, Client])
def test_the_clients_show_the_parameters_of_the_api(client: type) -> None:
    for name in CALLS:
        shown = inspect.signature(getattr(client, name)).parameters
        documented = inspect.signature(getattr(NodeApi, name)).parameters

        assert list(shown) == list(documented), name


@pytest.mark.asyncio
async def test_through_the_socket_every_request_and_answer_is_the_same() -> None:
    """The same calls, on the object and through the async client, leave the same notes and answers."""
    direct, served = FakeNode(), FakeNode()
    async with serving(served) as socket, AsyncClient(socket) as client:
        for name, call in CALLS.items():
            here, there = call(direct), call(client)
            if inspect.isasyncgen(here):
                assert await _all(here) == await _all(there), name
            else:
                assert await here == await there, name

    assert direct.requests == served.requests


@pytest.mark.asyncio
async def test_the_sync_client_gives_the_same_answers() -> None:
    direct = FakeNode()

    def ask(socket: Path) -> dict[str, Any]:
        with Client(socket) as client:
            answers = {name: call(client) for name, call in CALLS.items()}
            return {name: list(a) if inspect.isgenerator(a) else a for name, a in answers.items()}

    async with serving(FakeNode()) as socket:
        answers = await asyncio.to_thread(ask, socket)

    for name, call in CALLS.items():
        here = call(direct)
        assert answers[name] == (await _all(here) if inspect.isasyncgen(here) else await here), name


@pytest.mark.asyncio
async def test_an_error_arrives_as_the_node_raised_it() -> None:
    node = FakeNode()
    async with serving(node) as socket, AsyncClient(socket) as client:
        for call in (CALLS["group_show"], lambda client: anext(client.resolve("x", output_path="/o"))):
            node.failure = nodes.absent("x")
            with pytest.raises(NotFoundError, match="no group is called 'x'") as caught:
                await call(client)
            assert caught.value.hint == "`group list` shows them."


@pytest.mark.asyncio
async def test_a_bug_in_the_node_is_answered_and_the_next_request_too() -> None:
    node = FakeNode()
    with structlog.testing.capture_logs() as lines:
        async with serving(node) as socket, AsyncClient(socket) as client:
            node.failure = KeyError("oops")
            with pytest.raises(ControlError, match="the daemon failed in status: KeyError") as caught:
                await client.status()
            assert await client.status() == nodes.STATUS

    assert "bug" in caught.value.hint
    assert [line["event"] for line in lines] == ["control.failed"]


@pytest.mark.asyncio
async def test_leaving_a_stream_cancels_the_work_behind_it() -> None:
    node = FakeNode()
    node.blocks_in_resolve = True
    async with serving(node) as socket, AsyncClient(socket) as client:
        events = client.resolve("digits", output_path="/o")
        assert isinstance(await anext(events), model.ResolvePlan)
        assert isinstance(await anext(events), model.Progress)
        await events.aclose()  # type: ignore[attr-defined]  # A generator, which the type does not promise.

        await asyncio.wait_for(node.was_cancelled.wait(), timeout=60)


@pytest.mark.asyncio
async def test_nobody_else_can_open_the_socket() -> None:
    async with serving(FakeNode()) as socket:
        assert socket.stat().st_mode & 0o077 == 0


@pytest.mark.asyncio
async def test_closing_removes_the_socket_and_then_no_daemon_answers() -> None:
    async with serving(FakeNode()) as socket, AsyncClient(socket) as client:
        await client.version()
    assert not socket.exists()

    with pytest.raises(DaemonNotRunningError, match="no daemon answers"):
        Client(socket)


@pytest.mark.asyncio
async def test_a_socket_left_by_a_killed_daemon_is_no_daemon() -> None:
    with TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory) / "control.sock"
        (await asyncio.start_unix_server(lambda _r, _w: None, path)).close()
        assert path.is_socket()

        async with AsyncClient(path) as client:
            with pytest.raises(DaemonNotRunningError):
                await client.status()

        server = ControlServer(FakeNode(), path)
        await server.start()
        async with AsyncClient(path) as client:
            assert await client.status() == nodes.STATUS
        await server.close(grace_s=0)


@pytest.mark.asyncio
async def test_health_is_served_for_probes() -> None:
    async with serving(FakeNode()) as socket, grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "crdt_merge_proto.v1.NodeService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.asyncio
async def test_reflection_names_the_services() -> None:
    async with serving(FakeNode()) as socket, grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]

    names = {service.name for service in answers[0].list_services_response.service}
    assert {"crdt_merge_proto.v1.NodeService", "grpc.health.v1.Health"} <= names


@pytest.mark.asyncio
async def test_an_answer_may_exceed_four_mebibytes() -> None:
    """GRPC's default would refuse a group of some thousand contributions."""
    large = dataclasses.replace(nodes.OWN, meta={"notes": "x" * 16_000})

    class Large(FakeNode):
        async def contribution_list(self, group: str) -> tuple[model.ContributionInfo, ...]:
            return (large,) * 300

    async with serving(Large()) as socket, AsyncClient(socket) as client:
        assert await client.contribution_list("digits") == (large,) * 300


@pytest.mark.asyncio
async def test_a_closed_client_says_so_to_whoever_asks_it() -> None:
    async with serving(FakeNode()) as socket:
        async with AsyncClient(socket) as client:
            await client.status()

        with pytest.raises(ClientClosedError):
            await client.status()
        with pytest.raises(ClientClosedError):
            client.resolve("digits", output_path="/x")


@pytest.mark.asyncio
async def test_an_answer_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode()

    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(node, "status", never)
    async with serving(node) as socket:
        with (
            Client(socket, timeout_s=0.1) as client,
            pytest.raises(TimedOutError, match="did not answer in time"),
        ):
            await asyncio.to_thread(client.status)
