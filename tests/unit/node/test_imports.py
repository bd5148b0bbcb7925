"""What a failed import leaves: nothing, unless somebody has come to use it meanwhile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from crdt_merge_node.imports import ImportDesk
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec

pytestmark = pytest.mark.asyncio

ONE, TWO = b"1" * 32, b"2" * 32


class World:
    """Blobs that are there, and those that contributions name."""

    def __init__(self) -> None:
        self.present = {ONE, TWO}
        self.named: frozenset[bytes] = frozenset()
        self.looks = 0
        self.users = 0
        self.unused = self
        world: Any = self
        self.desk = ImportDesk(world, world)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        self.users += 1
        yield
        self.users -= 1

    def delete(self, blob: bytes) -> None:
        self.present.discard(blob)

    def named_blobs(self) -> frozenset[bytes]:
        return self.named

    def look_again(self) -> None:
        self.looks += 1


def manifest_of(*blobs: bytes) -> Manifest:
    return Manifest.of(
        ManifestEntry(spec=TensorSpec(name=f"t{n}", dtype="F32", shape=(1,)), blob=blob)
        for n, blob in enumerate(blobs)
    )


async def test_what_a_failed_import_brought_goes() -> None:
    world = World()

    async def fail() -> None:
        async with world.desk.importing(Path("file")) as model:
            model.fresh |= {ONE}
            raise KeyError("no")

    with pytest.raises(KeyError):
        await fail()

    assert world.present == {TWO}
    assert world.looks == 1


async def test_what_a_contribution_names_meanwhile_stays() -> None:
    world = World()
    async with world.desk.importing(Path("file")) as model:
        model.fresh |= {ONE, TWO}
        world.named = frozenset({TWO})

    assert world.present == {TWO}


async def test_what_was_kept_stays() -> None:
    world = World()
    async with world.desk.importing(Path("file")) as model:
        model.fresh |= {ONE, TWO}
        model.keep()

    assert world.present == {ONE, TWO}
    assert world.looks == 0


async def test_while_another_import_runs_nothing_goes_that_it_may_have_met() -> None:
    world = World()
    async with world.desk.importing(Path("other")) as other:
        async with world.desk.importing(Path("file")) as model:
            model.fresh |= {ONE, TWO}
        before = set(world.present)
        other.manifest = manifest_of(TWO)
        other.keep()

    assert before == {ONE, TWO}
    assert world.present == {TWO}
