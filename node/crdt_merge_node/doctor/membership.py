"""The node itself: its configuration, its daemon, its keys and its certificate."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.control.model import Severity
from crdt_merge_node.control.socket_path import control_socket
from crdt_merge_node.errors import DaemonNotRunningError
from crdt_merge_node.ports import is_locked
from crdt_merge_node.renewal import DAY_S, ERROR_S, WARNING_S, read_info
from crdt_merge_node.transport import Identity, load_authority
from crdt_merge_node.version import VERSION

from .findings import Answer, Patient, ok, problem, warning

_LOCK_BYTES_MAX = 64


def configuration(patient: Patient) -> Iterator[Answer]:
    """File, environment and flags: every problem that `run` would stop at."""
    if patient.config_error is None:
        given = [key for key, _, origin in patient.settings.items() if origin.kind != "default"]
        yield ok(f"valid, {len(given)} settings are not the default")
        return
    for text in getattr(patient.config_error, "problems", ()) or (patient.config_error.message,):
        yield problem(str(text), patient.command("config explain"))


def daemon(patient: Patient) -> Iterator[Answer]:
    """Whether it runs, answers, and is of this release; locks and sockets that were left behind."""
    lock = patient.data_dir / "LOCK"
    is_held = lock.is_file() and is_locked(lock)
    holder = _holder(patient) if is_held else ""
    if patient.status is not None:
        status = patient.status
        yield ok(f"answers: node {status.node[:12]}, process {status.pid}, version {status.version}")
        if status.version != VERSION:
            yield warning(
                f"the daemon is version {status.version}, this command {VERSION}",
                "systemctl restart crdt-merge-node   # or end `crdt-merge-node run` and start it again",
            )
        return
    if not isinstance(patient.status_error, DaemonNotRunningError | None):
        yield problem(f"it does not answer: {patient.status_error}", f"py-spy dump --pid {holder or 'PID'}")
    elif is_held:
        yield problem(
            f"process {holder or 'unknown'} holds {patient.data_dir} and does not answer on its socket",
            f"ps -fp {holder or 'PID'}; kill {holder or 'PID'}",
        )
    elif patient.has_node:
        yield warning("does not run", patient.command("run"))
    if not is_held:
        socket = patient.settings.control.socket or control_socket(patient.data_dir)
        if socket.is_socket():
            yield ok(f"{socket} is left of a daemon that ended; the next one replaces it")


def alarms(patient: Patient) -> Iterator[Answer]:
    """What the daemon itself complains about."""
    for alarm in patient.status.alarms if patient.status else ():
        judge = warning if alarm.severity == Severity.WARNING else problem
        yield judge(
            f"{alarm.code}: {alarm.message}", alarm.hint or f"crdt-merge-node errors lookup {alarm.code}"
        )


def identity(patient: Patient) -> Iterator[Answer]:
    """Whether the identity files are complete and belong together."""
    if not patient.has_node:
        yield problem(
            f"{patient.data_dir} holds no node",
            f"{patient.command('init')}   # or: init --join TOKEN",
        )
        return
    try:
        found = Identity.load(patient.data_dir, patient.fs)
        authority = load_authority(patient.data_dir, patient.fs)
    except CrdtMergeError as error:
        yield problem(error.message, error.hint or f"crdt-merge-node errors lookup {error.code}")
        return
    yield ok(f"node {found.node.hex()[:12]} of cluster {found.cluster_name} ({found.cluster.hex()[:12]})")
    if authority is not None and authority.cluster != found.cluster:
        yield problem(
            f"ca/ca.key is the authority of cluster {authority.cluster.hex()[:12]}, not of this one",
            f"mv {shlex.quote(str(patient.data_dir / 'ca'))} {shlex.quote(str(patient.data_dir))}/ca.other",
        )
    elif authority is not None:
        yield ok("holds the cluster's CA: can invite and renew")


def certificate(patient: Patient) -> Iterator[Answer]:
    """When the certificate and that of the CA end, against this machine's clock."""
    if patient.member is None:
        return
    info = read_info(patient.data_dir, patient.fs)
    now = patient.clock.now()
    if now < info.begins:
        yield problem(
            f"the certificate is valid only in {(info.begins - now) / DAY_S:.1f} days: the clock is behind",
            "timedatectl set-ntp true",
        )
    renew = patient.command("cert renew") if patient.status else patient.command("run")
    for what, expires, fix in (
        ("certificate", info.expires, renew),
        ("certificate of the CA", info.ca_expires, f"{renew}   # on a node that holds the CA"),
    ):
        left_s = expires - now
        if left_s <= 0:
            yield problem(f"the {what} expired {-left_s / DAY_S:.0f} days ago", fix)
        elif left_s < ERROR_S:
            yield problem(f"the {what} ends in {left_s / DAY_S:.1f} days", fix)
        elif left_s < WARNING_S:
            yield warning(f"the {what} ends in {left_s / DAY_S:.0f} days", fix)
        else:
            yield ok(f"the {what} is valid for {left_s / DAY_S:.0f} days")


def keys(patient: Patient) -> Iterator[Answer]:
    """Whether anybody else can read a private key, or change the data directory."""
    private = ("identity/node.key", "identity/tls.key", "ca/ca.key")
    present = [path for path in (patient.data_dir / name for name in private) if patient.fs.stat(path)]
    for path in present:
        found = patient.fs.stat(path)
        if found is not None and found.mode & 0o077:
            yield problem(
                f"{path} can be read by others (mode {found.mode:04o})", f"chmod 600 {shlex.quote(str(path))}"
            )
    directory = patient.fs.stat(patient.data_dir)
    if directory is not None and directory.mode & 0o022:
        yield problem(
            f"{patient.data_dir} can be written by others (mode {directory.mode:04o})",
            f"chmod go-w {shlex.quote(str(patient.data_dir))}",
        )
    elif present and not any((found := patient.fs.stat(p)) and found.mode & 0o077 for p in present):
        yield ok(f"{len(present)} private keys, readable by their owner alone")


def _holder(patient: Patient) -> str:
    """Return the process id that the holder of the lock wrote into it."""
    try:
        with patient.fs.open_read(patient.data_dir / "LOCK") as file:
            text = file.read_at(0, _LOCK_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return text if text.isdigit() else ""
