"""One besieged node for the tests of a module: making it takes longer than most of them."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.transport.identity import Identity, load_authority
from support.siege import Siege, besieged
from support.transport_world import VirtualLoop, World, member, today


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def siege() -> AsyncIterator[Siege]:
    """A live node, an honest peer, and ways to attack."""
    with tempfile.TemporaryDirectory(prefix="cmn-siege-") as directory:
        async with besieged(Path(directory)) as found:
            yield found


@pytest.fixture
def world() -> Iterator[World]:
    """Virtual time and a network of pipes, for what would take long."""
    loop = VirtualLoop()
    yield World(loop)
    loop.close()
    assert loop.problems == []


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two members of a cluster; ``a`` holds the CA."""
    root, fs, rng = tmp_path_factory.mktemp("members"), SystemFs(), SeededRng(7)
    a = Identity.create(root / "a", "prod", fs=fs, rng=rng, now=today())
    authority = load_authority(root / "a", fs)
    assert authority is not None
    return SimpleNamespace(a=a, b=member(root / "b", authority, rng), authority=authority)
