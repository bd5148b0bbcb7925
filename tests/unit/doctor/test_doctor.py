"""Each finding of `doctor`: the value that was found, how much it matters, and a fix for what is not well."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.control.model import Alarm, PeerDetail
from crdt_merge_node.control.socket_path import not_running
from crdt_merge_node.doctor import CHECKS, Finding, Level, Patient, examine, files, host, software
from crdt_merge_node.doctor import network as net
from crdt_merge_node.errors import ConfigError, TimedOutError
from crdt_merge_node.ports import DiskSpace, SystemFs, SystemRng, is_locked
from crdt_merge_node.transport.contexts import server_context
from crdt_merge_node.transport.identity import Identity
from crdt_merge_node.version import VERSION
from support import nodes

DAY = 86_400.0
NOW = float(int(time.time()))
"""OpenSSL judges the certificates of some tests by the real clock."""
FS = SystemFs()


class Clock:
    """A clock that stands where it is put."""

    def __init__(self, now: float = NOW) -> None:
        self.wall = now
        self.ticks = 0.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        self.ticks += 0.001
        return self.ticks


def make_identity(directory: Path, cluster: str = "dev", *, now: float = NOW) -> Identity:
    return Identity.create(directory, cluster, fs=FS, rng=SystemRng(), now=now)


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    """A node that was made and does not run."""
    make_identity(tmp_path / "n")
    return Patient(
        data_dir=tmp_path / "n", status_error=not_running(tmp_path / "n"), clock=Clock(), timeout_s=60.0
    )


def found(patient: Patient, check: str) -> list[Finding]:
    return list(examine(patient, {check: CHECKS[check]}))


def only(patient: Patient, check: str, level: Level) -> Finding:
    """Return the one finding of a level."""
    [finding] = [finding for finding in found(patient, check) if finding.level == level]
    assert (finding.fix != "") == (level != Level.OK), finding
    return finding


def settings(patient: Patient, **sections: dict[str, Any]) -> None:
    """Change settings of a patient."""
    config = patient.settings
    patient.config = config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


# --- the node -----------------------------------------------------------------------------------------


def test_every_problem_of_the_configuration_is_one(patient: Patient) -> None:
    patient.config_error = ConfigError.of(["listen.port = 70000: too large.", "unknown key 'x'."])

    assert [finding.found for finding in found(patient, "configuration")] == list(
        patient.config_error.problems
    )


def test_a_node_that_was_never_made_says_how_to_make_it(tmp_path: Path) -> None:
    bare = Patient(data_dir=tmp_path / "x")

    assert "init" in only(bare, "identity", Level.PROBLEM).fix
    assert found(bare, "certificate") == found(bare, "keys") == found(bare, "sync") == []


def test_a_daemon_that_does_not_run_is_no_problem_but_worth_a_word(patient: Patient) -> None:
    assert only(patient, "daemon", Level.WARNING).fix.endswith(" run")


def test_who_holds_the_directory_and_does_not_answer_is_named(patient: Patient) -> None:
    lock = FS.lock(patient.data_dir / "LOCK", note=b"4242\n")
    assert lock is not None
    try:
        finding = only(patient, "daemon", Level.PROBLEM)
    finally:
        lock.close()

    assert "process 4242 holds" in finding.found
    assert "kill 4242" in finding.fix


def test_looking_at_a_lock_neither_takes_nor_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    lock = FS.lock(path, note=b"17\n")
    assert lock is not None

    assert is_locked(path)
    lock.close()
    assert not is_locked(path)
    assert path.read_bytes() == b"17\n"


def test_a_socket_that_was_left_behind_is_no_problem(patient: Patient) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(patient.data_dir / "control.sock"))

        assert "replaces it" in only(patient, "daemon", Level.OK).found


def test_a_daemon_that_is_stuck_is_a_problem(patient: Patient) -> None:
    patient.status_error = TimedOutError("no answer within 3 s.")

    assert "py-spy dump" in only(patient, "daemon", Level.PROBLEM).fix


def test_a_daemon_of_another_release_is_to_be_restarted(patient: Patient) -> None:
    patient.status = dataclasses.replace(nodes.STATUS, version="0.0.9")

    assert "0.0.9" in only(patient, "daemon", Level.WARNING).found


@pytest.mark.parametrize(
    ("severity", "level"), [("warning", "warning"), ("error", "problem"), ("damage", "problem")]
)
def test_what_the_daemon_complains_of_is_passed_on_with_its_remedy(
    patient: Patient, severity: str, level: str
) -> None:
    alarm = Alarm(severity=severity, code="E1502", message="full", hint="make room")
    patient.status = dataclasses.replace(nodes.STATUS, alarms=(alarm,))

    assert only(patient, "alarms", Level(level)).fix == "make room"


@pytest.mark.parametrize(
    ("days", "levels"),
    [(1, ["ok", "ok"]), (800, ["warning", "ok"]), (820, ["problem", "ok"]), (830, ["problem", "ok"]),
     (3630, ["problem", "warning"])],
)  # fmt: skip
def test_certificates_end(patient: Patient, days: int, levels: list[str]) -> None:
    patient.clock = Clock(NOW + days * DAY)

    assert [finding.level.value for finding in found(patient, "certificate")] == levels


def test_a_clock_before_the_certificate_is_behind(patient: Patient) -> None:
    patient.clock = Clock(NOW - 30 * DAY)

    assert "the clock is behind" in only(patient, "certificate", Level.PROBLEM).found


def test_a_key_that_others_can_read_is_a_problem_for_both_who_look(patient: Patient) -> None:
    path = patient.data_dir / "identity" / "tls.key"
    path.chmod(0o640)

    assert only(patient, "keys", Level.PROBLEM).fix == f"chmod 600 {path}"
    assert "lets others read" in only(patient, "identity", Level.PROBLEM).found


def test_a_ca_of_another_cluster_is_noticed(patient: Patient, tmp_path: Path) -> None:
    other = make_identity(tmp_path / "other", "other")
    for name in ("ca.key", "ca.crt"):
        path = patient.data_dir / "ca" / name
        path.write_bytes((other.directory.parent / "ca" / name).read_bytes())

    assert "not of this one" in only(patient, "identity", Level.PROBLEM).found


def test_a_directory_that_others_can_write_is_a_problem(patient: Patient) -> None:
    patient.data_dir.chmod(0o777)

    assert "chmod go-w" in only(patient, "keys", Level.PROBLEM).fix


def _peer(name: str, *, agent: str, days: float = 100.0) -> PeerDetail:
    info = dataclasses.replace(nodes.ALIVE, name=name)
    return PeerDetail(peer=info, now=NOW, agent=agent, certificate_expires=NOW + days * DAY)


def test_peers_of_another_release_are_named(patient: Patient) -> None:
    own = f"crdt-merge-node/{VERSION}"
    patient.peers = (_peer("ann", agent=own), _peer("bob", agent="crdt-merge-node/0.0.9"))
    assert "bob (1 in all) run crdt-merge-node/0.0.9" in only(patient, "peers", Level.WARNING).found

    patient.peers = (_peer("ann", agent=own), _peer("eve", agent=own))
    assert "2 connected peers" in only(patient, "peers", Level.OK).found


def test_a_peer_whose_certificate_ends_is_named(patient: Patient) -> None:
    patient.peers = (_peer("ann", agent=f"crdt-merge-node/{VERSION}", days=20.0),)

    assert "of ann ends in 20 days" in only(patient, "peers", Level.WARNING).found


# --- the network --------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on who says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def answering() -> Iterator[Callable[[Identity], int]]:
    """Start nodes that shake hands and wait for a hello; each serves one connection."""
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(server: socket.socket, context: ssl.SSLContext) -> None:
        try:
            connection, _ = server.accept()
            connection.settimeout(60.0)
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)
        except OSError:
            return  # The other side left, or refused: both are what some tests are about.

    def start(identity: Identity) -> int:
        servers.append(socket.create_server(("127.0.0.1", 0)))
        context = server_context(identity, hears_joiners=False)
        threads.append(threading.Thread(target=serve, args=(servers[-1], context)))
        threads[-1].start()
        return int(servers[-1].getsockname()[1])

    yield start
    for server in servers:
        server.close()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()


def test_a_free_port_is_free_and_a_taken_one_names_who_to_ask(patient: Patient, taken: int) -> None:
    settings(patient, listen={"host": "127.0.0.1", "port": taken}, http={"port": None})
    assert f"sport = :{taken}" in only(patient, "ports", Level.PROBLEM).fix

    settings(patient, listen={"port": 0})
    assert "any free port" in only(patient, "ports", Level.OK).found


def test_a_busy_dashboard_is_only_a_warning(patient: Patient, taken: int) -> None:
    settings(patient, listen={"host": "0.0.0.0", "port": 0}, http={"port": taken})

    assert "Address already in use" in only(patient, "ports", Level.WARNING).found


def test_an_address_of_no_interface_is_a_problem(patient: Patient) -> None:
    settings(patient, listen={"host": "192.0.2.77", "port": 0}, http={"port": None})

    assert "ip address" in only(patient, "ports", Level.PROBLEM).fix


def test_who_listens_for_itself_alone_is_told(patient: Patient) -> None:
    settings(patient, listen={"host": "127.0.0.1", "port": 0}, http={"host": "0.0.0.0", "port": 0})

    said = [finding.found for finding in found(patient, "ports") if finding.level == Level.WARNING]
    assert "no other machine can connect" in said[0]
    assert "whoever reaches" in said[1]


@pytest.mark.parametrize(
    ("address", "level", "words"),
    [
        ("0.0.0.0:7946", Level.PROBLEM, "which nobody can dial"),
        ("[::]:7946", Level.PROBLEM, "which nobody can dial"),
        ("127.0.0.1:7946", Level.WARNING, "which only this machine can dial"),
        ("[::1]:7946", Level.WARNING, "which only this machine can dial"),
        ("localhost:7946", Level.WARNING, "which only this machine can dial"),
        ("unknown.invalid:7946", Level.PROBLEM, "is not known"),
    ],
)
def test_an_advertised_address_has_to_be_one_that_others_can_dial(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, address: str, level: Level, words: str
) -> None:
    def no_name(*_: object, **__: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(net.socket, "getaddrinfo", no_name)
    settings(patient, listen={"advertise": (address,)})

    assert words in only(patient, "advertised", level).found


def test_an_advertised_address_that_leads_to_another_node_is_a_problem(
    patient: Patient, answering: Callable[[Identity], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net, "_is_loopback", lambda _host: False)
    member = patient.member
    assert member is not None
    patient.status = dataclasses.replace(nodes.STATUS, node=member.node.hex())
    settings(patient, listen={"advertise": (f"127.0.0.1:{answering(member)}",)})
    assert "leads to this node" in only(patient, "advertised", Level.OK).found

    patient.status = dataclasses.replace(nodes.STATUS, node="ab" * 32)
    settings(patient, listen={"advertise": (f"127.0.0.1:{answering(member)}",)})
    assert "not here" in only(patient, "advertised", Level.PROBLEM).found


def test_a_seed_that_answers_is_named_with_its_times(
    patient: Patient, answering: Callable[[Identity], int], tmp_path: Path
) -> None:
    other = tmp_path / "second"
    for name in ("ca/ca.key", "ca/ca.crt"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((patient.data_dir / name).read_bytes())
        (other / name).chmod(0o600)
    seed = make_identity(other)
    settings(patient, peers={"seeds": (f"127.0.0.1:{answering(seed)}",)})

    finding = only(patient, "seeds", Level.OK)

    assert f"node {seed.node.hex()[:12]}, name " in finding.found
    assert "TLS " in finding.found


def test_a_seed_that_is_this_node_itself_is_said(
    patient: Patient, answering: Callable[[Identity], int]
) -> None:
    assert patient.member is not None
    settings(patient, peers={"seeds": (f"127.0.0.1:{answering(patient.member)}",)})

    assert "is this node itself" in only(patient, "seeds", Level.WARNING).found


def test_a_seed_of_another_cluster_is_said_to_be_one(
    patient: Patient, answering: Callable[[Identity], int], tmp_path: Path
) -> None:
    port = answering(make_identity(tmp_path / "stranger", "other"))
    settings(patient, peers={"seeds": (f"127.0.0.1:{port}",)})

    assert "was not signed by this cluster's CA" in only(patient, "seeds", Level.PROBLEM).found


def test_seeds_that_cannot_be_reached_are_named_with_the_step_that_failed(
    patient: Patient, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **more)

    monkeypatch.setattr(net.socket, "getaddrinfo", resolve)
    patient.timeout_s = 1.0
    with socket.socket() as deaf:  # It keeps its port, and does not listen.
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        settings(patient, peers={"seeds": ("seed.invalid:1", f"127.0.0.1:{port}", f"127.0.0.1:{taken}")})
        said = [finding.found for finding in found(patient, "seeds")]

    assert "the name seed.invalid is not known" in said[0]
    assert "Connection refused" in said[1]
    assert "no TLS handshake within 1 s" in said[2]


# --- the machine --------------------------------------------------------------------------------------


class Disk(SystemFs):
    """A file system with a given amount of room."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def disk_space(self, path: Path) -> DiskSpace:
        return DiskSpace(free_bytes=self.free_bytes, total_bytes=100 << 30)


@pytest.mark.parametrize(("free_mib", "level"), [(100, "problem"), (300, "warning"), (5000, "ok")])
def test_room_is_compared_with_the_reserve(patient: Patient, free_mib: int, level: str) -> None:
    patient.fs = Disk(free_mib << 20)

    first = found(patient, "disk")[0]

    assert first.level == level
    assert f"{free_mib} MiB of 102400 MiB" in first.found


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /srv rw - nfs4 server:/x rw
24 22 0:22 / /srv/with\\040space rw - tmpfs tmpfs rw
25 22 0:23 / /srv2 rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [("/srv/a/b", ("/srv", "nfs4")), ("/srv/with space/x", ("/srv/with space", "tmpfs")),
     ("/srv2/x", ("/srv2", "xfs")), ("/home", ("/", "ext4"))],
)  # fmt: skip
def test_the_mount_of_a_path_is_the_deepest_that_holds_it(path: str, mount: tuple[str, str]) -> None:
    assert files.mount_of(Path(path), MOUNTS) == mount


@pytest.mark.parametrize(
    ("kind", "level"), [("tmpfs", "warning"), ("nfs4", "warning"), ("overlay", "warning"), ("xfs", "ok")]
)
def test_file_systems_that_forget_are_told_apart(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, kind: str, level: str
) -> None:
    monkeypatch.setattr(files, "mount_of", lambda _path, _text: ("/data", kind))

    assert [finding.level.value for finding in found(patient, "file system")] == [level]


def test_a_read_only_file_system_is_a_problem(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(patient.data_dir)
    values = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
    read_only = type("Found", (), {**values, "f_flag": os.ST_RDONLY})
    monkeypatch.setattr(files.os, "statvfs", lambda _path: read_only)

    assert "remount,rw" in only(patient, "file system", Level.PROBLEM).fix


def test_syncing_is_timed_and_leaves_nothing(patient: Patient) -> None:
    before = sorted(patient.data_dir.rglob("*"))

    assert "4 KiB are durable after 1.0 ms" in only(patient, "sync", Level.OK).found
    assert sorted(patient.data_dir.rglob("*")) == before


def test_a_disk_that_cannot_sync_is_a_problem(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "_time_syncs", fail)

    assert "Input/output error" in only(patient, "sync", Level.PROBLEM).found


@pytest.mark.parametrize(("year", "level"), [(1970, "problem"), (2150, "problem"), (2027, "ok")])
def test_the_year_has_to_be_sane(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, year: int, level: str
) -> None:
    monkeypatch.setattr(host, "clock_is_synchronised", lambda: True)
    patient.clock = Clock((year - 1970) * 365.25 * DAY + DAY)

    assert [finding.level.value for finding in found(patient, "clock")] == [level]


def test_a_clock_that_nobody_disciplines_is_a_warning(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "clock_is_synchronised", lambda: False)

    assert "set-ntp" in only(patient, "clock", Level.WARNING).fix


def test_the_kernel_says_whether_the_clock_is_disciplined_or_nothing() -> None:
    assert host.clock_is_synchronised() in (True, False, None)


LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max open files            {}                 20000                files     \n"
)


@pytest.mark.parametrize(("text", "limit"), [("1024", 1024), ("unlimited", None)])
def test_the_limit_of_the_daemon_is_read_where_the_kernel_tells(text: str, limit: int | None) -> None:
    assert host.files_limit(LIMITS.format(text)) == limit


@pytest.mark.parametrize(("limit", "level"), [("100", "problem"), ("1000", "warning"), ("65536", "ok")])
def test_few_open_files_are_too_few(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, limit: str, level: str
) -> None:
    patient.status = nodes.STATUS
    monkeypatch.setattr(host, "_read", lambda _path: LIMITS.format(limit))

    assert [finding.level.value for finding in found(patient, "open files")] == [level]


@pytest.mark.parametrize(("free_mib", "limit", "levels"), [
    (8192, "max", ["ok"]), (300, "max", ["warning"]), (8192, str(300 << 20), ["warning", "ok"]),
    (0, "", ["ok"]),
])  # fmt: skip
def test_memory_is_compared_with_the_budget_of_a_resolve(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, free_mib: int, limit: str, levels: list[str]
) -> None:
    monkeypatch.setattr(host, "available_memory_bytes", lambda: free_mib << 20)
    monkeypatch.setattr(host, "_read", lambda _path: limit)

    assert [finding.level.value for finding in found(patient, "memory")] == levels


@pytest.mark.parametrize(
    ("version", "is_damaging"),
    [("3.6.23", False), ("3.7.0", True), ("3.40.1", True), ("3.44.5", True), ("3.44.6", False),
     ("3.50.6", True), ("3.50.7", False), ("3.51.2", True), ("3.51.3", False), ("3.54.1", False)],
)  # fmt: skip
def test_the_range_of_the_wal_reset_bug(version: str, is_damaging: bool) -> None:
    assert software.has_wal_reset_bug(version) == is_damaging


def test_a_check_that_fails_itself_stops_no_other(patient: Patient) -> None:
    def faint(_patient: Patient) -> Iterator[Any]:
        raise RuntimeError("oh")
        yield

    findings = list(examine(patient, {"first": faint, "configuration": CHECKS["configuration"]}))

    assert [finding.check for finding in findings] == ["first", "configuration"]
    assert "RuntimeError: oh" in findings[0].found


# --- the command --------------------------------------------------------------------------------------


def test_the_command_ends_with_1_and_says_how_to_mend_what_it_found(tmp_path: Path) -> None:
    shown = CliRunner().invoke(root, ["--data-dir", str(tmp_path / "x"), "doctor", "--problems"])
    told = CliRunner().invoke(root, ["--data-dir", str(tmp_path / "x"), "doctor", "--json"])
    answer = json.loads(told.stdout)

    assert shown.exit_code == told.exit_code == 1
    assert "PROBLEM  identity:" in shown.stdout
    assert "\nok " not in shown.stdout
    assert (answer["schema"], answer["is_healthy"]) == ("doctor/1", False)
    assert all(finding["fix"] for finding in answer["findings"] if finding["level"] != "ok")


def test_a_broken_configuration_is_a_finding_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRDT_MERGE_NODE_LISTEN__PROT", "1")

    answer = json.loads(CliRunner().invoke(root, ["--data-dir", str(tmp_path), "doctor", "--json"]).stdout)

    assert any("CRDT_MERGE_NODE_LISTEN__PROT" in finding["found"] for finding in answer["findings"])
    assert {finding["check"] for finding in answer["findings"]} >= {"disk", "versions", "memory"}
