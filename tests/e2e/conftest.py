"""Three daemons for the tests of a module."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from crdt_merge_node.local_cluster import LocalCluster
from support.daemons import Harness, with_ports


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    """Three daemons, joined by token, for all tests of a module."""
    with tempfile.TemporaryDirectory(prefix="cmn-") as directory, asyncio.Runner() as runner:
        cluster = with_ports(LocalCluster(3, directory=Path(directory)))
        runner.run(cluster.__aenter__())
        try:
            runner.run(cluster.connected())
            yield Harness(runner, cluster)
        finally:
            runner.run(cluster.close())
