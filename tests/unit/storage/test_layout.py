import errno
import json

import pytest
from crdt_merge_node.errors import (
    AlreadyRunningError,
    CorruptError,
    FullError,
    SchemaTooNewError,
    StorageError,
)
from crdt_merge_node.storage import DataDir
from support.machines import HOME, new_disk


def test_a_new_directory_has_every_room_and_is_private(tmp_path):
    data = DataDir.open(tmp_path / "deep" / "data")

    assert data.path.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in data.path.iterdir()} == {
        "LOCK", "FORMAT", "identity", "ca", "blobs", "kept", "partial", "tmp", "quarantine",
    }  # fmt: skip
    assert data.has_store is False
    data.close()


def test_a_second_daemon_on_one_directory_is_refused_with_73(tmp_path):
    """T45: the lock is that of the directory, whatever path leads to it."""
    data = DataDir.open(tmp_path / "data")
    with pytest.raises(AlreadyRunningError, match="another process uses") as caught:
        DataDir.open(tmp_path / "data" / ".." / "data")

    assert caught.value.exit_code == 73
    data.close()
    DataDir.open(tmp_path / "data").close()


def test_a_newer_format_is_refused_and_unlocks(tmp_path):
    DataDir.open(tmp_path).close()
    (tmp_path / "FORMAT").write_text(json.dumps({"format": 2, "has_store": True}))
    for _attempt in range(2):
        with pytest.raises(SchemaTooNewError, match="format 2"):
            DataDir.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "x", "has_store": true}', "\xff", "[" * 4000])
def test_an_unreadable_format_is_damage_and_not_a_crash(tmp_path, text):
    DataDir.open(tmp_path).close()
    (tmp_path / "FORMAT").write_text(text, encoding="latin-1")

    with pytest.raises(CorruptError):
        DataDir.open(tmp_path)


def test_a_symbolic_link_or_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    """B65."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_bytes(b"")

    for name in ("link", "file"):
        with pytest.raises(StorageError, match="not a directory"):
            DataDir.open(tmp_path / name)


def test_a_directory_that_everybody_can_write_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)

    with pytest.raises(StorageError, match="by everybody"):
        DataDir.open(tmp_path / "open")


def test_that_a_store_was_made_is_remembered(tmp_path):
    data = DataDir.open(tmp_path)
    data.mark_store()
    data.close()

    data = DataDir.open(tmp_path)
    assert data.has_store is True
    data.close()


@pytest.mark.parametrize(
    ("code", "expected"), [("ENOSPC", FullError), ("EROFS", StorageError), ("EACCES", StorageError)]
)
def test_a_directory_that_cannot_be_made_is_named(code, expected):
    """B66."""

    def fault(_index, name, _path):
        if name == "mkdir":
            raise OSError(getattr(errno, code), "no")

    with pytest.raises(expected) as caught:
        DataDir.open(HOME, fs=new_disk(fault=fault))

    assert str(HOME) in caught.value.message
    assert caught.value.hint
