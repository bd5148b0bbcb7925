"""A node behind a real Unix socket, and a command line to talk to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pytest
from click.testing import CliRunner, Result
from crdt_merge_node.cli.app import root
from crdt_merge_node.control.service import ControlServer
from support.nodes import FakeNode

Run = Callable[..., Result]


class Served:
    """A control server in a loop of its own thread; the node behind it is changed for each test."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.node = FakeNode()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._server.close(grace_s=0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> ControlServer:
        server = ControlServer(self, self.data_dir / "control.sock")  # type: ignore[arg-type]
        await server.start()
        return server

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=300)

    def __getattr__(self, name: str):
        return getattr(self.node, name)


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with TemporaryDirectory(dir="/tmp") as directory, Served(Path(directory)) as server:
        yield server


@pytest.fixture
def node(served: Served) -> FakeNode:
    """The node that answers; fresh for every test."""
    served.node = FakeNode()
    return served.node


@pytest.fixture
def run(served: Served, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line against ``node``."""
    monkeypatch.setenv("CRDT_MERGE_NODE_DATA_DIR", str(served.data_dir))

    def invoke(*arguments: str, **options) -> Result:
        return CliRunner().invoke(root, arguments, **options)

    return invoke
