"""One besieged node for the tests of a module: making it takes longer than most of them."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from support.siege import Siege, besieged


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def siege() -> AsyncIterator[Siege]:
    """A live node, an honest peer, and ways to attack."""
    with tempfile.TemporaryDirectory(prefix="cmn-siege-") as directory:
        async with besieged(Path(directory)) as found:
            yield found
