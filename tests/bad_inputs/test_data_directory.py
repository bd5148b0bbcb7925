"""Data directories in which no node can live (SCENARIOS 6.2: B65, B66, B68; T45, T52)."""

import json
import os
import socket
from pathlib import Path

import pytest
import structlog
from crdt_merge_node.config import Config
from crdt_merge_node.errors import (
    AlreadyRunningError,
    ConfigError,
    CorruptError,
    SchemaTooNewError,
    StorageError,
)
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.runtime import running_node
from crdt_merge_node.storage import DataDir
from crdt_merge_node.world import World
from crdt_merge_protocol.errors import CrdtMergeError
from support.siege import bounded_memory
from support.whole_nodes import Site, config_of, save_model

pytestmark = pytest.mark.asyncio


async def refused(config: Config, error: type[CrdtMergeError], match: str | None = None) -> CrdtMergeError:
    """Start a node that must not start; return why it did not, in words and with a remedy."""
    with structlog.testing.capture_logs(), bounded_memory(), pytest.raises(error, match=match) as caught:
        async with running_node(config, World(), is_served=False):
            pass
    return caught.value


FORMATS = {
    "a newer format": ('{"format": 2, "has_store": true}', SchemaTooNewError),
    "a format of 2^70": ('{"format": 1180591620717411303424, "has_store": true}', SchemaTooNewError),
    "an infinite format": ('{"format": 1e999, "has_store": true}', CorruptError),
    "a format that is NaN": ('{"format": NaN, "has_store": true}', CorruptError),
    "a format of five thousand digits": ('{"format": ' + "9" * 4000 + "}", CorruptError),
    "a format that is text": ('{"format": "two", "has_store": true}', CorruptError),
    "no format": ("{}", CorruptError),
    "a list": ("[]", CorruptError),
    "nothing": ("", CorruptError),
    "deep": ("[" * 4000, CorruptError),
    "zeros": ("\0" * 100, CorruptError),
    "more than is read": ('{"format": 1, "has_store": true' + " " * 5000 + "}", CorruptError),
}


@pytest.mark.parametrize("case", FORMATS)
async def test_b66_a_directory_of_another_release_or_of_none_is_refused(case, tmp_path: Path):
    site = Site(tmp_path)
    home = site.make()
    text, error = FORMATS[case]
    (home / "FORMAT").write_text(text)

    found = await refused(config_of(home), error)

    assert found.exit_code in (7, 78)
    assert found.hint


async def test_b66_a_directory_of_another_cluster_is_refused(tmp_path: Path):
    """The identity was exchanged, and the operations are those of somebody else."""
    one, two = Site(tmp_path / "one"), Site(tmp_path / "two")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    home, other = one.make(), two.make()
    async with one.running(home) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
    for path in (other / "identity").iterdir():
        (home / "identity" / path.name).write_bytes(path.read_bytes())

    assert "cluster" in str(await refused(config_of(home), CrdtMergeError))


async def test_b66_t45_a_directory_in_use_is_refused_with_73(tmp_path: Path):
    site = Site(tmp_path)
    home = site.make()
    async with site.running(home):
        error = await refused(config_of(home), AlreadyRunningError)

        assert error.exit_code == 73
        assert str(os.getpid()) in (home / "LOCK").read_text()


@pytest.mark.parametrize("kind", ["link", "file", "writable by all", "fifo", "of a device"])
async def test_b65_b66_what_is_no_directory_of_ones_own_is_refused(kind, tmp_path: Path):
    site = Site(tmp_path)
    home = site.make()
    place = tmp_path / "place"
    match kind:
        case "link":
            place.symlink_to(home)
        case "file":
            place.write_text("")
        case "writable by all":
            place = home
            place.chmod(0o777)
        case "fifo":
            os.mkfifo(place)
        case "of a device":
            place = Path("/dev/null")

    assert (await refused(config_of(place), StorageError)).message


IN_THE_WAY = {
    "LOCK": ["directory", "fifo", "link", "socket"],
    "FORMAT": ["directory", "fifo", "link", "device"],
    "ops.db": ["directory", "fifo", "socket"],
    "identity/cluster.json": ["directory", "fifo", "link", "device"],
    "identity/node.key": ["directory", "fifo", "link", "device"],
    "identity/tls.crt": ["directory", "fifo", "link"],
    "blobs": ["file", "fifo"],
    "tmp": ["file"],
    "partial": ["file"],
    "quarantine": ["file"],
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in IN_THE_WAY.items() for kind in kinds]
)
async def test_b66_b68_something_else_in_the_place_of_a_file_is_an_error_and_never_a_hang(
    name, kind, tmp_path: Path
):
    site = Site(tmp_path)
    home = site.make()
    async with site.running(home) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
    put(home / name, kind, tmp_path)

    error = await refused(config_of(home), CrdtMergeError)

    assert name.rpartition("/")[2] in str(error)


def put(path: Path, kind: str, elsewhere: Path) -> None:
    """Put something else in the place of a file or directory; what was there goes to a side."""
    path.rename(elsewhere / "was-here")
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(elsewhere / "was-here")
        case "device":
            path.symlink_to("/dev/zero")
        case "file":
            path.write_bytes(b"in the way")
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))


@pytest.mark.parametrize("name", ["node.key", "tls.key"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o660])
async def test_b65_a_key_that_others_may_read_is_refused_with_the_remedy(name, mode, tmp_path: Path):
    home = Site(tmp_path).make()
    (home / "identity" / name).chmod(mode)

    error = await refused(config_of(home), ConfigError, match="lets others read")

    assert error.exit_code == 78
    assert "chmod 600" in error.hint


class ReadOnly(SystemFs):
    """A file system that was mounted read-only, for a test that may run as root."""

    def create(self, path: Path, *, mode: int = 0o600):
        raise OSError(30, "Read-only file system", str(path))

    def open_write(self, path: Path):
        raise OSError(30, "Read-only file system", str(path))

    def lock(self, path: Path, *, note: bytes):
        raise OSError(30, "Read-only file system", str(path))

    def mkdir(self, path: Path, *, mode: int = 0o700) -> bool:
        if path.is_dir():
            return False
        raise OSError(30, "Read-only file system", str(path))


async def test_b66_a_read_only_directory_is_named(tmp_path: Path):
    home = Site(tmp_path).make()

    with pytest.raises(StorageError, match="Read-only file system"):
        DataDir.open(home, fs=ReadOnly())
    with pytest.raises(StorageError, match="Read-only file system"):
        DataDir.open(tmp_path / "new", fs=ReadOnly())


FACTS = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "another format": b'{"format": 9, "cluster": "", "name": "", "introducers": []}',
    "a cluster that is a number": b'{"format": 1, "cluster": 5, "name": "", "introducers": []}',
    "introducers that are numbers": b'{"format": 1, "cluster": "", "name": "", "introducers": [1]}',
    "introducers that are text": b'{"format": 1, "cluster": "ab", "name": "", "introducers": "abc"}',
    "deep": b"[" * 60_000,
    "a number of 60,000 digits": b'{"format": ' + b"9" * 60_000 + b"}",
    "infinite": b'{"format": 1e999}',
    "a megabyte": b" " * 1_000_000,
}


@pytest.mark.parametrize("case", FACTS)
async def test_b66_facts_about_the_cluster_that_are_none_are_damage(case, tmp_path: Path):
    home = Site(tmp_path).make()
    (home / "identity" / "cluster.json").write_bytes(FACTS[case])

    error = await refused(config_of(home), CrdtMergeError)

    assert isinstance(error, CorruptError | ConfigError)
    assert error.hint


async def test_t52_facts_in_the_store_that_are_none_keep_no_node_from_starting(tmp_path: Path):
    """Whatever somebody wrote under the names that a start reads: it is left out, and the node runs."""
    site = Site(tmp_path)
    home = site.make()
    async with site.running(home) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        store = node.services.store
        for key in ("peer/", "blocked/", "unfollowed/", "attest/", "finite/", "invite/"):
            for rest in ("", "zz", "ab" * 32, "ab" * 5000, "\x00", json.dumps({"a": [1]}), "../../x"):
                await store.put_meta(key + rest, os.urandom(40))
    with structlog.testing.capture_logs():
        async with site.running(home) as node:
            assert node.group("g") is not None
            await node.add("g", tmp_path / "model")
