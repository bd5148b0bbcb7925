"""`fsck` finds each kind of damage, says what helps, repairs without deleting, changes nothing unasked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.cli.fsck import _check_identity
from crdt_merge_node.errors import AlreadyRunningError, NotFoundError
from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs
from crdt_merge_node.storage import DataDir, Store, save_root
from crdt_merge_node.storage.findings import Level
from crdt_merge_node.storage.fsck import Checked, fsck
from crdt_merge_node.transport.identity import Identity
from crdt_merge_protocol.blobs import blob_digest_of, payload_id
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.merkle import Trie
from support.machines import GENESIS, GROUP, make_rows

ROWS = make_rows(6)
LARGE = bytes(range(256)) * 4096 * 2 + b"the last chunk is a short one"
SMALL = b"a small tensor"
OBJECT = b"notes of a contribution"
LARGE_DIGEST, SMALL_DIGEST = blob_digest_of(LARGE), blob_digest_of(SMALL)

pytestmark = pytest.mark.usefixtures("lines")


async def _fill(data_dir: Path, source: Path) -> None:
    fs = SystemFs()
    data = DataDir.open(data_dir, fs=fs)
    store = await Store.open(data, clock=SystemClock(), rng=SeededRng(1), reserve_bytes=0)
    await store.add_group(GENESIS, GROUP)
    await store.append(ROWS)
    store.blobs.import_tensor(source, 0, len(LARGE))
    store.blobs.put_inline(SMALL_DIGEST, SMALL)
    store.blobs.put_object(payload_id(OBJECT), OBJECT)
    trie = Trie()
    for row in ROWS:
        trie.insert(row.id)
    await save_root(store, GROUP, root=trie.root, count=len(ROWS))
    await store.close()
    data.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with everything in it."""
    import asyncio

    directory = tmp_path_factory.mktemp("whole")
    (directory / "large").write_bytes(LARGE)
    data_dir = directory / "node"
    Identity.create(data_dir, "prod", fs=SystemFs(), rng=SeededRng(1), now=SystemClock().now())
    asyncio.run(_fill(data_dir, directory / "large"))
    return data_dir


@pytest.fixture
def node(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "node")
    return tmp_path / "node"


def _fsck(node: Path, *, repair: bool = False) -> Checked:
    return fsck(node, fs=SystemFs(), clock=SystemClock(), check_identity=_check_identity, is_repairing=repair)


def _kinds(checked: Checked) -> list[str]:
    return [found.kind for found in checked.findings if found.level is not Level.NOTE]


def _sql(node: Path, *statements: str) -> None:
    connection = apsw.Connection(str(node / "ops.db"))
    for statement in statements:
        connection.execute(statement)
    connection.close()


def _large(node: Path) -> Path:
    name = LARGE_DIGEST.hex()
    return node / "blobs" / name[:2] / name[2:]


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def _blank_page(path: Path, number: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: 4096 * number] + bytes(4096) + data[4096 * (number + 1) :])


def _snapshot(node: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(node)): path.read_bytes()
        for path in sorted(node.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def test_a_whole_directory_has_nothing_to_say(node: Path) -> None:
    checked = _fsck(node)

    assert checked.findings == []
    assert (checked.groups, checked.operations, checked.blobs) == (1, len(ROWS), 2)
    assert checked.nbytes == len(LARGE) + len(SMALL)
    assert Genesis.decode(GENESIS).group == GROUP


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "an operation of other bytes": (
        "operation",
        lambda node: _sql(
            node,
            "UPDATE operations SET wire = (SELECT wire FROM operations WHERE position = 1) "
            "WHERE position = 3",
        ),
    ),
    "an operation whose signature was changed": (
        "operation",
        lambda node: _sql(
            node,
            "UPDATE operations SET wire = CAST(substr(wire, 1, length(wire) - 1) || x'00' AS BLOB) "
            "WHERE position = 6",
        ),
    ),
    "an operation of text": (
        "operation",
        lambda node: _sql(node, "UPDATE operations SET wire = 'text' WHERE position = 6"),
    ),
    "an operation that is gone": (
        "root",
        lambda node: _sql(node, "DELETE FROM operations WHERE position = 6"),
    ),
    "a genesis of other bytes": ("group", lambda node: _sql(node, "UPDATE groups SET genesis = x'c1'")),
    "an object of other bytes": ("object", lambda node: _sql(node, "UPDATE objects SET data = x'00'")),
    "an object under another name": (
        "object",
        lambda node: _sql(node, "UPDATE objects SET id = zeroblob(32)"),
    ),
    "a small blob of other bytes": (
        "blob",
        lambda node: _sql(node, "UPDATE blobs SET inline = x'00' WHERE inline IS NOT NULL"),
    ),
    "a list of chunks that is none": (
        "blob",
        lambda node: _sql(node, "UPDATE blobs SET chunks = x'00' WHERE inline IS NULL"),
    ),
    "one bit of a large blob": ("blob", lambda node: _flip(_large(node), 1 << 20)),
    "the last byte of a large blob": ("blob", lambda node: _flip(_large(node), len(LARGE) - 1)),
    "a large blob cut short": ("blob", lambda node: _large(node).write_bytes(LARGE[:-1])),
    "a large blob that is gone": ("blob", lambda node: _large(node).unlink()),
    "a directory in its place": ("blob", lambda node: (_large(node).unlink(), _large(node).mkdir())),
    "a database page of zeros": (
        "database",
        lambda node: _blank_page(node / "ops.db", 2),
    ),
    "a database that is none": ("database", lambda node: (node / "ops.db").write_bytes(b"nonsense" * 4096)),
    "a database that is gone": ("database", lambda node: (node / "ops.db").unlink()),
    "a FORMAT file that is none": ("layout", lambda node: (node / "FORMAT").write_text("{")),
    "a node key cut short": ("identity", lambda node: (node / "identity" / "node.key").write_bytes(b"x")),
    "a certificate that is none": ("identity", lambda node: (node / "identity" / "tls.crt").write_text("-")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage_is_found_and_named(node: Path, name: str) -> None:
    kind, damage = DAMAGE[name]
    damage(node)

    checked = _fsck(node)

    assert checked.is_damaged
    assert kind in _kinds(checked)
    assert all(found.fix and found.message for found in checked.findings)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_check_changes_nothing(node: Path, name: str) -> None:
    DAMAGE[name][1](node)
    before = _snapshot(node)

    _fsck(node)

    after = {name: data for name, data in _snapshot(node).items() if not name.startswith("ops.db-")}
    assert after == before


REPAIRED = [name for name, (kind, _) in DAMAGE.items() if kind in ("operation", "object", "blob")]


@pytest.mark.parametrize("name", REPAIRED)
def test_a_repair_sets_aside_and_the_node_starts(node: Path, name: str) -> None:
    DAMAGE[name][1](node)
    bytes_before = sum(len(data) for path, data in _snapshot(node).items() if path.startswith("blobs/"))
    repaired = _fsck(node, repair=True)
    again = _fsck(node)

    assert any(found.is_repaired for found in repaired.findings)
    # What was built on a lost operation waits for it, and the saved root tells of it: only peers mend that.
    assert {found.kind for found in again.findings if found.level is Level.DAMAGE} <= {"order", "root"}
    kept = [path for path in (node / "quarantine").rglob("*") if path.is_file()]
    left = sum(len(data) for path, data in _snapshot(node).items() if path.startswith("blobs/"))
    assert left + sum(path.stat().st_size for path in kept) == bytes_before
    assert _open(node) is not None


@pytest.mark.parametrize("name", ["a database page of zeros", "a database that is none"])
def test_a_broken_database_gives_its_readable_rows(node: Path, name: str) -> None:
    DAMAGE[name][1](node)
    repaired = _fsck(node, repair=True)
    store = _open(node)

    assert repaired.salvaged_rows is not None
    assert any(path.name.startswith("ops.db.") for path in (node / "quarantine").iterdir())
    assert store.recovery.operations <= len(ROWS)
    assert LARGE_DIGEST in store.blobs.digests()  # Taken in again from its file, if not from its row.


def _open(node: Path) -> Store:
    """Start the store of a node, and stop it."""
    import asyncio

    async def start() -> Store:
        data = DataDir.open(node, fs=SystemFs())
        try:
            store = await Store.open(data, clock=SystemClock(), rng=SeededRng(2), reserve_bytes=0)
            await store.close()
        finally:
            data.close()
        return store

    return asyncio.run(start())


def test_what_a_crash_leaves_is_a_note_and_no_damage(node: Path) -> None:
    (node / "tmp" / "0123").write_bytes(b"half")
    _sql(node, "DELETE FROM blobs WHERE inline IS NULL")

    checked = _fsck(node)

    assert not checked.is_damaged
    assert [found.kind for found in checked.findings] == ["orphan", "temporary"]
    repaired = _fsck(node, repair=True)
    assert all(found.is_repaired for found in repaired.findings)
    assert _fsck(node).blobs == 2
    assert (node / "quarantine" / "tmp-0123.fsck-0").read_bytes() == b"half"


def test_strange_files_are_moved_and_not_deleted(node: Path) -> None:
    (node / "blobs" / "readme").write_text("mine")
    (node / "blobs" / "ab").mkdir(exist_ok=True)
    (node / "blobs" / "ab" / ("0" * 62)).write_text("not what it says")
    (node / "partial" / "x").write_text("?")

    checked = _fsck(node, repair=True)

    assert _kinds(checked) == ["orphan", "layout", "layout"]
    assert sorted(path.read_text() for path in (node / "quarantine").iterdir()) == [
        "?",
        "mine",
        "not what it says",
    ]


def test_a_key_that_others_can_read_is_made_private(node: Path) -> None:
    for name in ("identity/node.key", "ca/ca.key"):
        (node / name).chmod(0o644)
    before = (node / "identity" / "node.key").read_bytes()

    checked = _fsck(node, repair=True)

    assert _kinds(checked) == ["permission", "permission"]
    assert (node / "identity" / "node.key").stat().st_mode & 0o777 == 0o600
    assert (node / "identity" / "node.key").read_bytes() == before


def test_a_directory_that_others_can_write_is_named(node: Path) -> None:
    (node / "blobs").chmod(0o777)

    [found] = _fsck(node).findings

    assert (found.kind, found.level) == ("permission", Level.WARNING)
    assert f"chmod 755 {node / 'blobs'}" in found.fix


def test_it_stays_away_from_a_running_daemon(node: Path) -> None:
    data = DataDir.open(node, fs=SystemFs())
    try:
        with pytest.raises(AlreadyRunningError):
            _fsck(node)
    finally:
        data.close()


def test_a_directory_without_a_node_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        _fsck(tmp_path)


def test_the_command_ends_with_7_if_there_is_damage_and_says_how_far_it_is(node: Path) -> None:
    whole = CliRunner().invoke(root, ["fsck", "--data-dir", str(node)])
    _flip(_large(node), 5)
    damaged = CliRunner().invoke(root, ["fsck", "--data-dir", str(node), "--json"])
    repaired = CliRunner().invoke(root, ["fsck", "--data-dir", str(node), "--repair"])
    lines = [json.loads(line) for line in damaged.stdout.splitlines()]

    assert (whole.exit_code, damaged.exit_code, repaired.exit_code) == (0, 7, 0)
    assert "1 group, 6 operations, 2 blobs" in whole.stdout
    assert {line["event"] for line in lines} == {"progress", "result"}
    assert any(
        line["event"] == "progress" and line["progress"]["total_bytes"] == len(LARGE) for line in lines
    )
    assert lines[-1]["findings"][0]["kind"] == "blob"
    assert "repaired blob" in repaired.stdout


def test_running_commands_are_told_to_stop_first(node: Path) -> None:
    data = DataDir.open(node, fs=SystemFs())
    try:
        result = CliRunner().invoke(root, ["fsck", "--data-dir", str(node)])
    finally:
        data.close()

    assert result.exit_code == 73


def test_inspect_lists_what_is_stored_and_changes_nothing(node: Path) -> None:
    before = _snapshot(node)
    shown = CliRunner().invoke(root, ["inspect", "--data-dir", str(node)])
    found = json.loads(CliRunner().invoke(root, ["inspect", "--data-dir", str(node), "--json"]).stdout)
    none = CliRunner().invoke(root, ["inspect", "--data-dir", str(node), "--author", "00", "--json"])
    newest = CliRunner().invoke(
        root, ["inspect", "--data-dir", str(node), "--group", GROUP.hex()[:8], "--last", "1", "--json"]
    )

    assert shown.exit_code == 0
    assert shown.stdout.count("\n") == len(ROWS) + 1
    assert [item["id"] for item in found["operations"]] == [row.id.hex() for row in ROWS]
    assert {item["seq"] for item in found["operations"]} == set(range(len(ROWS)))
    assert json.loads(none.stdout)["total"] == 0
    assert [item["id"] for item in json.loads(newest.stdout)["operations"]] == [ROWS[-1].id.hex()]
    assert {name: data for name, data in _snapshot(node).items() if not name.startswith("ops.db-")} == before


def test_inspect_names_what_is_damaged(node: Path) -> None:
    _sql(node, "UPDATE operations SET wire = x'c1' WHERE position = 2")

    result = CliRunner().invoke(root, ["inspect", "--data-dir", str(node)])

    assert result.exit_code == 7
    assert "damaged" in result.stdout.splitlines()[2]
