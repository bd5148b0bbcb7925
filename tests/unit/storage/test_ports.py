import ast
import asyncio
import os
from pathlib import Path

import crdt_merge_node
import pytest
from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs, SystemRng, TcpNet, replace_file

NODE = Path(crdt_merge_node.__file__).parent
BANNED_CALLS = {
    "open",
    "os.open",
    "os.fsync",
    "os.urandom",
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "time.perf_counter",
    "time.sleep",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "datetime.datetime.now",
    "uuid.uuid4",
    "uuid.uuid1",
}
BANNED_MODULES = {"random", "secrets"}
ALLOWED = {
    "ports": "the ports themselves",
    "cli": "commands run for a person, not inside the simulator",
    "resolve": "worker processes read and write files that a person named; no port reaches into a process",
}


def violations(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
            found.append(f"{node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).partition(".")[0] in BANNED_MODULES:
            found.append(f"{node.lineno}: {ast.unparse(node.func)}")
        if isinstance(node, ast.ImportFrom) and node.module in {*BANNED_MODULES, "time"}:
            found.append(f"{node.lineno}: from {node.module} import")
    return found


def sources() -> list[Path]:
    return [path for path in sorted(NODE.rglob("*.py")) if path.relative_to(NODE).parts[0] not in ALLOWED]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(NODE)))
def test_the_world_enters_through_the_ports_alone(path):
    assert violations(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "open('x')",
        "from random import choice",
        "random.random()",
        "os.urandom(3)",
    ],
)
def test_the_lint_sees_what_it_bans(source):
    assert len(violations(source)) == 1


def test_a_file_is_read_and_written_at_positions(tmp_path):
    fs = SystemFs()
    with fs.create(tmp_path / "a") as file:
        file.write_at(3, b"def")
        file.write_at(0, b"abc")
        file.sync()

        assert file.read_at(1, 100) == b"bcdef"
        assert file.read_at(100, 1) == b""
        file.truncate(2)
        assert file.size() == 2


def test_create_refuses_an_existing_name_and_a_link(tmp_path):
    fs = SystemFs()
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "absent")

    for name in ("a", "link"):
        with pytest.raises(FileExistsError):
            fs.create(tmp_path / name)

    assert (tmp_path / "a").read_bytes() == b"old"
    assert not (tmp_path / "absent").exists()


def test_only_regular_files_are_opened(tmp_path):
    """B68: a directory, a FIFO or a link in the place of a blob neither hangs nor is followed."""
    fs = SystemFs()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")

    for name in ("directory", "fifo", "link"):
        with pytest.raises(OSError):
            fs.open_read(tmp_path / name)
    with fs.open_read(tmp_path / "link", follow=True) as file:
        assert file.read_at(0, 9) == b"x"


def test_a_closed_file_refuses_and_closes_again(tmp_path):
    file = SystemFs().create(tmp_path / "a")
    file.close()
    file.close()

    with pytest.raises(OSError, match="closed"):
        file.size()


def test_a_lock_is_exclusive_until_closed(tmp_path):
    fs = SystemFs()
    lock = fs.lock(tmp_path / "LOCK", note=b"1\n")

    assert lock is not None
    assert fs.lock(tmp_path / "LOCK", note=b"2\n") is None
    assert (tmp_path / "LOCK").read_bytes() == b"1\n"

    lock.close()
    again = fs.lock(tmp_path / "LOCK", note=b"3\n")
    assert again is not None
    again.close()


def test_replace_file_replaces_and_survives_the_rest_of_a_crash(tmp_path):
    fs = SystemFs()
    (tmp_path / ".note.new").write_bytes(b"half")

    replace_file(fs, tmp_path / "note", b"one")
    replace_file(fs, tmp_path / "note", b"two")

    assert (tmp_path / "note").read_bytes() == b"two"
    assert fs.listdir(tmp_path) == ["note"]
    assert fs.stat(tmp_path / "note").mode == 0o600


def test_stat_and_listdir_say_when_there_is_nothing(tmp_path):
    fs = SystemFs()

    assert fs.stat(tmp_path / "absent") is None
    assert fs.listdir(tmp_path / "absent") == []
    assert fs.mkdir(tmp_path / "new") is True
    assert fs.mkdir(tmp_path / "new") is False
    assert 0 < fs.disk_space(tmp_path).free_bytes <= fs.disk_space(tmp_path).total_bytes


def test_seeded_numbers_repeat_and_system_numbers_do_not():
    assert SeededRng(7).bytes(16) == SeededRng(7).bytes(16)
    assert SystemRng().bytes(16) != SystemRng().bytes(16)
    assert 0 <= SystemRng().random() < 1


def test_the_clock_tells_wall_and_monotonic_time():
    clock = SystemClock()
    first = clock.monotonic()

    assert clock.now() > 1_700_000_000
    assert clock.monotonic() >= first


@pytest.mark.asyncio
async def test_listen_and_connect_carry_bytes_over_loopback():
    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    class Collect(asyncio.Protocol):
        def __init__(self):
            self.received = asyncio.get_running_loop().create_future()

        def data_received(self, data):
            self.received.set_result(data)

    net = TcpNet()
    listener = await net.listen(Echo, "127.0.0.1", 0)
    transport, protocol = await net.connect(Collect, *listener.address)
    transport.write(b"hello")

    assert await protocol.received == b"hello"
    closed = asyncio.Event()
    protocol.connection_lost = lambda _error: closed.set()
    transport.close()
    listener.close()
    await closed.wait()
