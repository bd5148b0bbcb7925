import pytest
from crdt_merge_node.storage import compare_root, replay, save_root
from crdt_merge_node.storage.recovery import explain_damage
from crdt_merge_protocol.errors import LocalProtocolError
from crdt_merge_protocol.operations import SignedOperation
from support.authors import make_genesis
from support.machines import GENESIS, GROUP, HOME, MODEL, MODEL_BYTES, Machine, make_rows, new_disk

ROWS = make_rows(6)

pytestmark = pytest.mark.usefixtures("lines")


async def fill(disk) -> None:
    async with Machine(disk) as store:
        await store.add_group(GENESIS, GROUP)
        await store.append(ROWS)


POISON = {
    "not msgpack": "UPDATE operations SET wire = x'c1' WHERE position = 3",
    "empty": "UPDATE operations SET wire = x'' WHERE position = 3",
    "text": "UPDATE operations SET wire = 'text' WHERE position = 3",
    "other bytes": "UPDATE operations SET wire = (SELECT wire FROM operations WHERE position = 1) "
    "WHERE position = 3",
    "id of text": "UPDATE operations SET id = 'x' WHERE position = 3",
    "short id": "UPDATE operations SET id = x'00' WHERE position = 3",
    "other id": "UPDATE operations SET id = zeroblob(32) WHERE position = 3",
    "a million bytes": "UPDATE operations SET wire = zeroblob(1000000) WHERE position = 3",
    "deep nesting": "UPDATE operations SET wire = CAST(replace(hex(zeroblob(400)), '00', char(145)) AS BLOB) "
    "WHERE position = 3",
}


@pytest.mark.parametrize("name", POISON)
@pytest.mark.asyncio
async def test_a_poisonous_row_does_not_stop_the_start(name):
    """T52: the row is set aside, everything else is there, and a good copy can take its place."""
    disk = new_disk()
    await fill(disk)
    async with Machine(disk) as store:
        store._database.delete(POISON[name])
    async with Machine(disk) as store:
        found = list(store.load_operations(GROUP))

        assert found == ROWS[:2] + ROWS[3:]
        assert [(kind, bool(reason)) for kind, _, reason in store.quarantined()] == [("operation", True)]
        await store.append([ROWS[2]])
        assert list(store.load_operations(GROUP)) == [*found, ROWS[2]]


@pytest.mark.asyncio
async def test_replay_applies_everything_in_order():
    disk = new_disk()
    await fill(disk)
    applied: list[bytes] = []
    async with Machine(disk) as store:
        report = replay(store, GROUP, lambda signed: applied.append(signed.id))

    assert applied == [row.id for row in ROWS]
    assert (report.applied, report.quarantined, report.waiting) == (6, [], [])


@pytest.mark.asyncio
async def test_replay_sets_aside_what_breaks_the_state_and_keeps_what_waits_for_it():
    """T52: an operation on which the state crashes takes nothing else with it."""
    disk = new_disk()
    await fill(disk)
    known: set[bytes] = set()

    def apply(signed: SignedOperation) -> None:
        if signed.id == ROWS[2].id:
            raise ZeroDivisionError("a bug of ours")
        if not signed.operation.parents <= known:
            raise LocalProtocolError("something is missing")
        known.add(signed.id)

    async with Machine(disk) as store:
        report = replay(store, GROUP, apply)

        assert known == {ROWS[0].id, ROWS[1].id}
        assert report.quarantined == [(ROWS[2].id, "ZeroDivisionError: a bug of ours")]
        assert report.waiting == [row.id for row in ROWS[3:]]
        assert list(store.load_operations(GROUP)) == ROWS[:2] + ROWS[3:]


@pytest.mark.asyncio
async def test_replay_takes_an_ancestor_that_was_stored_late():
    disk = new_disk()
    known: set[bytes] = set()

    def apply(signed: SignedOperation) -> None:
        if not signed.operation.parents <= known:
            raise LocalProtocolError("something is missing")
        known.add(signed.id)

    async with Machine(disk) as store:
        await store.add_group(GENESIS, GROUP)
        await store.append(ROWS[::-1])
        report = replay(store, GROUP, apply)

    assert (report.applied, report.waiting) == (6, [])


def test_a_row_of_another_group_is_damage():
    row = ROWS[0]

    assert explain_damage(row) is None
    assert "another group" in explain_damage(type(row)(b"h" * 32, row.id, row.wire))


@pytest.mark.asyncio
async def test_a_whole_file_without_a_row_is_taken_in(lines):
    """A crash between rename and COMMIT costs nothing."""
    disk = new_disk()
    async with Machine(disk) as store:
        digest, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        store._database.delete("DELETE FROM blobs")
    machine = Machine(disk)
    async with machine as store:
        assert store.recovery.blobs_adopted == [digest]
        store.blobs.verify(digest)
        assert not store.recovery.is_clean
    assert machine.corrupt == []
    assert "store.repaired" in [line["event"] for line in lines]


@pytest.mark.asyncio
async def test_a_condemned_file_is_removed_and_not_taken_in():
    """A crash in the middle of a delete does not bring the blob back."""
    disk = new_disk()
    async with Machine(disk) as store:
        digest, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        store._database.delete("DELETE FROM blobs")
        store._database.delete("INSERT INTO condemned VALUES (?)", digest)
        path = store.blobs.files.path_of(digest)
    async with Machine(disk) as store:
        assert not store.blobs.has(digest)
        assert disk.stat(path) is None
        assert store._database.query("SELECT * FROM condemned") == []


@pytest.mark.asyncio
async def test_strange_things_in_the_directories_are_swept_or_set_aside():
    disk = new_disk()
    async with Machine(disk) as store:
        small, _ = store.blobs.import_tensor(MODEL, 0, 5)
    disk.mkdir(HOME / "tmp" / "directory")
    disk.mkdir(HOME / "blobs" / "ab")
    disk.mkdir(HOME / "blobs" / "zz")
    disk.mkdir(HOME / "blobs" / small.hex()[:2])
    for path in (
        HOME / "tmp" / "half-written",
        HOME / "blobs" / "file",
        HOME / "blobs" / "ab" / "short",
        HOME / "blobs" / "ab" / ("0" * 62),
        HOME / "blobs" / small.hex()[:2] / small.hex()[2:],
        HOME / "partial" / "nonsense",
        HOME / "partial" / small.hex(),
    ):
        disk.create(path)
    async with Machine(disk) as store:
        assert store.blobs.digests() == [small]
        assert store.recovery.files_swept == 2
        assert store.recovery.files_quarantined == 5
    assert disk.listdir(HOME / "tmp") == []
    assert disk.listdir(HOME / "partial") == []
    assert len(disk.listdir(HOME / "quarantine")) == 7
    async with Machine(disk) as store:
        assert store.recovery.is_clean


@pytest.mark.asyncio
async def test_a_saved_root_reveals_lost_and_changed_operations_but_not_new_ones():
    async with Machine(new_disk()) as store:
        assert await compare_root(store, GROUP, root=b"r" * 32, count=5) is None
        await save_root(store, GROUP, root=b"r" * 32, count=5)

        assert await compare_root(store, GROUP, root=b"r" * 32, count=5) is None
        assert await compare_root(store, GROUP, root=b"s" * 32, count=6) is None
        assert "4 are here" in await compare_root(store, GROUP, root=b"r" * 32, count=4)
        assert "now give" in await compare_root(store, GROUP, root=b"s" * 32, count=5)
        await store.put_meta("root/" + GROUP.hex(), b"\xc1")
        assert "not readable" in await compare_root(store, GROUP, root=b"r" * 32, count=5)


@pytest.mark.parametrize("poison", ["text", b"", b"\xc1", make_genesis(is_open=False).encode()])
@pytest.mark.asyncio
async def test_damaged_rows_about_blobs_objects_groups_and_facts_do_not_stop_the_start(poison):
    """T52: what they were about is found by its hash, here or at a peer."""
    disk = new_disk()
    async with Machine(disk) as store:
        large, _ = store.blobs.import_tensor(MODEL, 0, MODEL_BYTES)
        store.blobs.put_object(b"o" * 32, b"manifest")
        await store.put_meta("fact", b"value")
        await store.add_group(GENESIS, GROUP)
        store._database.delete("UPDATE blobs SET nbytes = 'x'")
        store._database.delete("UPDATE objects SET id = 7")
        store._database.delete("UPDATE facts SET value = 1000000000000")
        store._database.delete("UPDATE groups SET genesis = ?", poison)
    async with Machine(disk) as store:
        assert store.recovery.rows_dropped == 2
        assert store.recovery.blobs_adopted == [large]
        assert not store.blobs.has_object(b"o" * 32)
        assert await store.scan_meta("") == []
        assert store.groups() == []
        await store.add_group(GENESIS, GROUP)
        assert store.groups() == [(GROUP, GENESIS)]
