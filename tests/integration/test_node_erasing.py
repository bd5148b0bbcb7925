"""Erasing: the bytes go from every node, stay away, and every node says so (SCENARIOS T35, T36)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.api.erasures import erasure_list
from crdt_merge_node.contents import read_payload
from crdt_merge_node.control.model import ActRequest, ErasureInfo
from crdt_merge_node.erasing import Erasures
from crdt_merge_node.errors import BannedError, FullError
from crdt_merge_node.ports import SystemClock, SystemFs
from crdt_merge_node.resolve.remembered import FOLDER, NAME
from crdt_merge_node.storage.restore import restore_backup
from crdt_merge_protocol.acts import Erase
from crdt_merge_protocol.operations import Add, Kind
from safetensors.numpy import save_file
from support.whole_nodes import Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio

MARK = b"TO-BE-ERASED-01!"
NOTE = "noted-and-to-be-erased"


def save_marked(path: Path, *, rows: int = 3) -> Path:
    """Write a model whose matrix repeats the mark: four floats, finite ones, a row."""
    assert len(MARK) == 16
    matrix = np.frombuffer(MARK * rows, np.float32).reshape(rows, 4)
    assert np.isfinite(matrix).all()
    save_file({"w": matrix, "b": np.full(4, 7.0, np.float32)}, path)
    return path


def marked(*directories: Path, mark: bytes = MARK) -> list[str]:
    """Return the files below data directories that hold the mark or the note."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    found = []
    for path in files:
        data = path.read_bytes()
        if mark in data or NOTE.encode() in data:
            found.append(str(path))
    return found


async def act(node: WholeNode, group: str, kind: str, *targets: str, reason: str = "because") -> str:
    """Let an administrator of a group of one do something; return the id of the operation."""
    proposed = await node.api.act_propose(group, ActRequest(kind=kind, targets=targets, reason=reason))
    return (await node.api.act_submit(proposed.text)).operation


async def until_erased(
    node: WholeNode, group: str, check: Callable[[ErasureInfo], bool] = lambda info: info.is_complete
) -> ErasureInfo:
    """Wait until a condition holds of the one erasure of a group."""
    found: list[ErasureInfo] = []

    def look() -> bool:
        known = node.group(group)
        found[:] = erasure_list(node.services, known) if known else []
        return len(found) == 1 and check(found[0])

    await node.until(look)
    return found[0]


async def test_erased_bytes_are_on_no_node_and_each_says_so(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.nodes(3) as (first, second, third):
        model = save_marked(tmp_path / "model.safetensors", rows=20_000)
        await first.create_group("g", model)
        await second.until_group("g", lambda info: not info.missing_blobs)
        added = await second.add("g", model, meta={"about": NOTE})
        await third.until_group("g", lambda info: not info.missing_blobs)
        await third.add("g", save_model(tmp_path / "other.safetensors", 2.0, rows=20_000))
        await until_agreed("g", first, second, third, used=2)
        data = [node.services.config.node.data_dir for node in (first, second, third)]
        assert len({path.split("node-")[1][0] for path in marked(*data)}) == 3
        await act(first, "g", "erase", added.contribution.tag, reason="not ours to share")
        report = await until_erased(first, "g")
        assert {node.id for node in report.done} == {node.id.hex() for node in (first, second, third)}
        assert marked(*data) == []
        await until_agreed("g", first, second, third, used=1)
        for node in (first, second, third):
            [hidden] = [i for i in await node.api.contribution_list("g") if i.tag == added.contribution.tag]
            assert hidden.reason.startswith("erased: not ours to share (act ")
        with pytest.raises(BannedError, match="not ours to share"):
            await third.add("g", model)
        assert marked(*data) == []


async def test_a_node_that_was_away_loses_its_copy_when_it_returns(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data = [site.make(), site.make()]
    model = save_marked(tmp_path / "model.safetensors", rows=20_000)
    async with site.running(data[0], name="n0") as first:
        async with site.running(data[1], first.address, name="n1") as second:
            await first.create_group("g", model)
            await second.until_group("g", lambda info: not info.missing_blobs)
            added = await second.add("g", model, meta={"about": NOTE})
            await until_agreed("g", first, second, used=1)
        await act(first, "g", "erase", added.contribution.tag)
        report = await until_erased(first, "g", lambda info: bool(info.done))
        assert [node.id for node in report.outstanding] == [second.id.hex()]
        assert marked(data[0]) == []
        assert marked(data[1])
        async with site.running(data[1], first.address, name="n1") as second:
            await until_erased(first, "g")
            assert marked(*data) == []
    async with site.running(data[1], name="n1") as second:
        assert (await second.info("g")).used == 0


async def test_a_restored_backup_brings_nothing_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data = [site.make(), site.make()]
    model = save_marked(tmp_path / "model.safetensors", rows=20_000)
    async with site.running(data[0], name="n0") as first:
        async with site.running(data[1], first.address, name="n1") as second:
            await first.create_group("g", model)
            await second.until_group("g", lambda info: not info.missing_blobs)
            added = await second.add("g", model, meta={"about": NOTE})
            await until_agreed("g", first, second, used=1)
            await last(second.api.backup(path=str(tmp_path / "backup"), with_keys=True, copy=True))
            await act(first, "g", "erase", added.contribution.tag)
            await until_erased(first, "g")
            assert marked(*data) == []
        shutil.rmtree(data[1])
        restore_backup(tmp_path / "backup", data[1], is_alone=False, fs=SystemFs(), clock=SystemClock())
        assert marked(data[1])
        async with site.running(data[1], first.address, name="n1") as second:
            await second.services.driver.standing.until_open("restored")
            assert marked(*data) == []
            assert (await second.info("g")).used == 0


async def test_an_erased_contribution_leaves_the_output_that_was_without_it(tmp_path: Path) -> None:
    """Tensors that another contribution shares stay, and the merge is the one before (SCENARIOS S18, T35)."""
    async with Site(tmp_path).nodes(2) as (first, second):
        shared = np.arange(80_000, dtype=np.float32).reshape(20_000, 4)
        vectors = [np.full(20_000, value, np.float32) for value in (1.0, 2.0)]
        paths = [tmp_path / "stays.safetensors", tmp_path / "goes.safetensors"]
        for path, vector in zip(paths, vectors, strict=True):
            save_file({"w": shared, "b": vector}, path)
        await first.create_group("g", paths[0])
        await second.until_group("g", lambda info: not info.missing_blobs)
        await second.add("g", paths[0])
        await until_agreed("g", first, second, used=1)
        before = await first.resolve("g", tmp_path / "before.safetensors")
        added = await second.add("g", paths[1], slot="more")
        await until_agreed("g", first, second, used=2)
        await first.resolve("g", tmp_path / "between.safetensors")
        data = [node.services.config.node.data_dir for node in (first, second)]
        gone = vectors[1].tobytes()[:4096]
        assert len(marked(*data, mark=gone)) == 2
        await act(first, "g", "erase", added.contribution.tag)
        await until_erased(first, "g")
        assert marked(*data, mark=gone) == []
        await until_agreed("g", first, second, used=1)
        for node in (first, second):
            after = await node.resolve("g", tmp_path / f"after-{node.id.hex()[:8]}.safetensors")
            assert (after.resolve_key, after.output_digest) == (before.resolve_key, before.output_digest)


async def test_an_erasure_without_signatures_has_no_effect(tmp_path: Path) -> None:
    """SCENARIOS T37, B33."""
    async with Site(tmp_path).nodes(2) as (first, second):
        model = save_marked(tmp_path / "model.safetensors")
        await first.create_group("g", model)
        await second.until_group("g", lambda info: not info.missing_blobs)
        added = await first.add("g", model)
        await until_agreed("g", first, second, used=1)
        group, tag = first.group("g"), bytes.fromhex(added.contribution.tag)
        assert group is not None
        content = bytes.fromhex(added.contribution.content)
        forged = Erase(contents=(content,), tags=(tag,), reason="mine", nonce=bytes(16))
        alone = forged.signed_by(second.services.identity.node_key, group)
        for body in (forged, alone):
            await second.services.driver.author(group, Kind.ERASE, body.encode(), (tag,))
        await second.equal("g", first)
        for node in (first, second):
            assert (await node.info("g")).used == 1
            assert (await node.api.group_show("g")).acts == ()
            assert await node.api.erasure_list("g") == ()
            assert marked(node.services.config.node.data_dir)


async def test_what_one_group_erases_another_may_keep(tmp_path: Path) -> None:
    """A group is self-contained; its bans and erasures are its own."""
    async with Site(tmp_path).nodes(1) as (node,):
        model = save_marked(tmp_path / "model.safetensors", rows=20_000)
        for name in ("g", "h"):
            await node.create_group(name, model)
        added = await node.add("g", model, meta={"about": NOTE})
        await act(node, "g", "erase", added.contribution.tag)
        await until_erased(node, "g")
        data = node.services.config.node.data_dir
        assert marked(data) == []
        await node.add("h", model)
        assert marked(data)
        assert (await node.info("h")).used == 1
        with pytest.raises(BannedError):
            await node.add("g", model)
        again = await node.create_group("i", base=model)
        assert again.name == "i"


async def test_t37_no_group_destroys_what_another_needs_by_naming_it_as_something_else(
    tmp_path: Path,
) -> None:
    """Anybody may found a group and be its administrator; an act of it names any 32 bytes."""
    async with Site(tmp_path).nodes(1) as (node,):
        model = save_marked(tmp_path / "model.safetensors")
        await node.create_group("g", model)
        added = await node.add("g", model, meta={"about": NOTE})
        await node.create_group("h", save_model(tmp_path / "other.safetensors", 2.0))
        g, h = node.group("g"), node.group("h")
        assert g is not None
        assert h is not None
        state, driver, blobs = (
            node.services.engine.replicas[g].state,
            node.services.driver,
            node.services.store.blobs,
        )
        [shown] = state.view.visible
        assert shown.payload is not None
        packing = read_payload(blobs.get_object(shown.payload) or b"").packing
        needed = [shown.content, shown.payload, state.view.policy.schema, *filter(None, [packing])]
        assert all(map(blobs.has_object, needed))
        tags = []
        for payload in needed:
            add = Add(slot="s", type="model", content=bytes(32), weight=1, payload=payload)
            tags.append((await driver.author(h, Kind.ADD, add.encode(), ())).id)
        tags.sort()
        erase = Erase(
            contents=tuple(sorted((bytes(32), *needed[1:]))), tags=tuple(tags), reason="", nonce=bytes(16)
        ).signed_by(node.services.identity.node_key, h)
        await driver.author(h, Kind.ERASE, erase.encode(), tuple(tags))
        await until_erased(node, "h")
        assert all(map(blobs.has_object, needed))
        assert not blobs.erased_among(needed)
        await node.resolve("g", tmp_path / "merged.safetensors")
        assert added.contribution.tag in {item.tag for item in await node.api.contribution_list("g")}


async def test_metadata_alone_may_be_erased_and_the_content_stays_needed(tmp_path: Path) -> None:
    """What one group erases stays for a group in which only the notes of it were."""
    async with Site(tmp_path).nodes(1) as (node,):
        model = save_marked(tmp_path / "model.safetensors", rows=20_000)
        tags = {}
        for name in ("g", "h"):
            await node.create_group(name, model)
            tags[name] = (await node.add(name, model, meta={"about": NOTE})).contribution.tag
        h = node.group("h")
        assert h is not None
        tag = bytes.fromhex(tags["h"])
        notes = Erase(contents=(), tags=(tag,), reason="", nonce=bytes(16)).signed_by(
            node.services.identity.node_key, h
        )
        await node.services.driver.author(h, Kind.ERASE, notes.encode(), (tag,))
        await until_erased(node, "h")
        await act(node, "g", "erase", tags["g"])
        await until_erased(node, "g")
        assert marked(node.services.config.node.data_dir)
        with_notes = [p for p in node.services.config.node.data_dir.rglob("*") if p.is_file()]
        assert not any(NOTE.encode() in path.read_bytes() for path in with_notes)
        await node.resolve("h", tmp_path / "merged.safetensors")


async def test_t36_no_node_says_that_it_erased_what_it_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may be in the way; it is tried again, and only then is there a RECEIPT."""
    monkeypatch.setattr("crdt_merge_node.erasing.RETRY_S", 0.0)
    async with Site(tmp_path).nodes(1) as (node,):
        model = save_marked(tmp_path / "model.safetensors")
        await node.create_group("g", model)
        added = await node.add("g", model)
        await node.resolve("g", tmp_path / "merged.safetensors")
        data = node.services.config.node.data_dir
        assert (data / FOLDER / NAME).exists()
        erase, tries = node.services.store.blobs.erase, []

        def fail(**wanted: object) -> None:
            tries.append(wanted)
            info = erasure_list(node.services, node.group("g") or b"")
            assert not any(one.done for one in info)
            if len(tries) < 4:
                raise FullError("no room.")
            erase(**wanted)  # type: ignore[arg-type]

        monkeypatch.setattr(node.services.store.blobs, "erase", fail)
        await act(node, "g", "erase", added.contribution.tag)
        await until_erased(node, "g")
        assert len(tries) == 4
        assert marked(data) == []
        assert not (data / FOLDER / NAME).exists()  # What earlier outputs held is taken over by none.


async def test_t35_what_a_kill_left_of_an_erasure_goes_before_anybody_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> None:
        pass

    monkeypatch.setattr(Erasures, "enforce", killed)
    site = Site(tmp_path)
    data = site.make()
    async with site.running(data) as node:
        model = save_marked(tmp_path / "model.safetensors")
        await node.create_group("g", model)
        added = await node.add("g", model, meta={"about": NOTE})
        await act(node, "g", "erase", added.contribution.tag)
    assert marked(data)
    async with site.running(data) as node:
        assert marked(data) == []
        assert (await node.info("g")).used == 0
