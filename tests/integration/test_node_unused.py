"""What counts for nothing any more goes from the disk, and nothing else does (SCENARIOS T19, T32)."""

from __future__ import annotations

from pathlib import Path

import pytest
from crdt_merge_node.control.model import ActRequest
from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import SystemClock
from crdt_merge_node.storage import EXCLUDED_FACT
from crdt_merge_node.unused import LOOK_S_MAX, LOST_S, PAST_S
from crdt_merge_node.world import World
from support.whole_nodes import Site, WholeNode, save_model, until_agreed

pytestmark = pytest.mark.asyncio

ROWS = 20_000
MODEL_BYTES = ROWS * 16


class Ahead(SystemClock):
    """A clock that is told when time passes."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed_s


async def let_pass(node: WholeNode, clock: Ahead, seconds: float) -> None:
    """Let a node look before and after so much time."""
    await node.services.keeper.unused.look()
    clock.passed_s += seconds + 1.0
    await node.services.keeper.unused.look()


async def act(node: WholeNode, kind: str, *targets: str, **more: object) -> None:
    request = ActRequest(kind=kind, targets=targets, **{"reason": "because", **more})  # type: ignore[arg-type]
    await node.api.act_submit((await node.api.act_propose("g", request)).text)


def stored(node: WholeNode) -> int:
    """Return the bytes of the files of blobs, as they are on the disk."""
    data_dir = node.services.config.node.data_dir
    files = [path for name in ("blobs", "kept", "partial") for path in (data_dir / name).rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file())


async def test_a_store_shrinks_after_a_revocation_and_stays_whole(tmp_path: Path) -> None:
    """A spammer's contributions go, also those that others have built upon (SCENARIOS T19)."""
    clock = Ahead()
    async with Site(tmp_path).nodes(2, n0=World(clock=clock)) as (node, spammer):
        await node.create_group("g", save_model(tmp_path / "honest", 0.5, rows=ROWS))
        await spammer.until_group("g", lambda info: not info.missing_blobs)
        for number in range(3):
            path = save_model(tmp_path / "spam", 1.0 + number, rows=ROWS)
            await spammer.add("g", path, slot=f"s{number}", meta={"about": "x" * 4096})
        await until_agreed("g", node, spammer, used=3)
        await node.add("g", tmp_path / "honest")
        path = save_model(tmp_path / "spam", 9.0, rows=ROWS)
        await spammer.add("g", path, slot="late")
        await until_agreed("g", node, spammer, used=5)
        assert stored(node) == 5 * MODEL_BYTES
        objects = len(node.services.store.blobs.object_ids())
        await act(node, "revoke", spammer.id.hex(), counts_nothing=True)
        await node.until_group("g", lambda info: info.used == 1)
        await let_pass(node, clock, LOST_S)
        assert stored(node) == MODEL_BYTES
        assert len(node.services.store.blobs.object_ids()) < objects - 4
        assert await node.services.store.scan_meta(EXCLUDED_FACT) == []
        await node.resolve("g", tmp_path / "out.safetensors")


@pytest.mark.parametrize("kind", ["ban", "remove"])
async def test_what_administrators_hide_goes_after_its_grace(tmp_path: Path, kind: str) -> None:
    clock = Ahead()
    async with Site(tmp_path).nodes(2, n0=World(clock=clock)) as (node, author):
        await node.create_group("g", save_model(tmp_path / "model", 1.0, rows=ROWS))
        await author.until_group("g", lambda info: not info.missing_blobs)
        added = await author.add("g", tmp_path / "model")
        await author.add("g", save_model(tmp_path / "other", 2.0, rows=ROWS), slot="other")
        await until_agreed("g", node, author, used=2)
        await act(node, kind, added.contribution.tag)
        await until_agreed("g", node, author, used=1)
        grace = LOST_S if kind == "ban" else PAST_S
        await let_pass(node, clock, grace / 2)
        assert stored(node) == 2 * MODEL_BYTES
        await let_pass(node, clock, grace / 2)
        assert stored(node) == MODEL_BYTES


async def test_only_what_was_replaced_twice_goes(tmp_path: Path) -> None:
    """Were the newest of a slot banned, the one before would count again, and nobody else may have it."""
    clock = Ahead()
    async with Site(tmp_path).nodes(1, n0=World(clock=clock)) as (node,):
        await node.create_group("g", save_model(tmp_path / "model", 0.0, rows=ROWS))
        added = [
            await node.add("g", save_model(tmp_path / "model", 1.0 + number, rows=ROWS))
            for number in range(4)
        ]
        await let_pass(node, clock, PAST_S)
        assert stored(node) == 2 * MODEL_BYTES
        await act(node, "ban", added[-1].contribution.content)
        info = await node.until_group("g", lambda info: info.used == 1)
        assert not info.missing_blobs
        await let_pass(node, clock, PAST_S)
        assert stored(node) == MODEL_BYTES


async def test_what_anything_else_uses_stays(tmp_path: Path) -> None:
    """A base, and what another group counts, of the same bytes."""
    clock = Ahead()
    async with Site(tmp_path).nodes(1, n0=World(clock=clock)) as (node,):
        base = save_model(tmp_path / "base", 1.0, rows=ROWS)
        shared = save_model(tmp_path / "shared", 2.0, rows=ROWS)
        await node.create_group("g", base=base)
        await node.create_group("h", base)
        await node.add("h", shared)
        for number, path in enumerate((base, shared)):
            added = await node.add("g", path, slot=f"s{number}")
            await act(node, "ban", added.contribution.tag)
        before = stored(node)
        await let_pass(node, clock, LOST_S)
        assert stored(node) == before
        await node.resolve("h", tmp_path / "out.safetensors")


async def test_nothing_goes_while_somebody_reads(tmp_path: Path) -> None:
    clock = Ahead()
    async with Site(tmp_path).nodes(1, n0=World(clock=clock)) as (node,):
        model = save_model(tmp_path / "model", 1.0, rows=ROWS)
        await node.create_group("g", model)
        added = await node.add("g", model)
        await act(node, "ban", added.contribution.tag)
        before = stored(node)
        async with node.services.imports.importing(model):
            await let_pass(node, clock, LOST_S)
            assert stored(node) == before
        await node.services.keeper.unused.look()
        assert stored(node) == 0


async def test_waiting_goes_on_over_restarts_and_a_crash_between_blobs_is_made_good(tmp_path: Path) -> None:
    site, clock = Site(tmp_path), Ahead()
    data_dir, world = site.make(), World(clock=clock)
    async with site.running(data_dir, world=world) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0, rows=ROWS))
        await node.add("g", tmp_path / "model")
        await node.api.contribution_remove("g", "main")
        await let_pass(node, clock, PAST_S - LOOK_S_MAX)
    async with site.running(data_dir, world=world) as node:
        blobs, calls = node.services.store.blobs, []
        delete = blobs.delete

        def fail(digest: bytes) -> None:
            calls.append(digest)
            if len(calls) == 2:
                raise StorageError("the disk is away.")
            delete(digest)

        blobs.delete = fail  # type: ignore[method-assign]
        with pytest.raises(StorageError):
            await let_pass(node, clock, LOOK_S_MAX)
        assert len(blobs.digests()) == 1
    async with site.running(data_dir, world=world) as node:
        await node.services.keeper.unused.look()
        assert node.services.store.blobs.digests() == []
        assert stored(node) == 0
        again = await node.add("g", tmp_path / "model")
        assert again.contribution.state == "used"
        await let_pass(node, clock, PAST_S)
        assert stored(node) == MODEL_BYTES
