"""One besieged node for the tests of a module: making it takes longer than most of them."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from support.siege import Siege, besieged
from support.transport_world import World, make_members, quiet_world


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def siege() -> AsyncIterator[Siege]:
    """A live node, an honest peer, and ways to attack."""
    with tempfile.TemporaryDirectory(prefix="cmn-siege-") as directory:
        async with besieged(Path(directory)) as found:
            yield found


@pytest.fixture
def world() -> Iterator[World]:
    """Virtual time and a network of pipes, for what would take long."""
    with quiet_world() as found:
        yield found


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Members of a cluster; ``a`` holds the CA."""
    return make_members(tmp_path_factory.mktemp("members"))
