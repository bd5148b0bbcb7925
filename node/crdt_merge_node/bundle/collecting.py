"""Gathering the pieces of a bundle. One that cannot be had is named with the reason, and stops no other."""

from __future__ import annotations

import http.client
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.limits import WIRE_VERSION_MAX

from crdt_merge_node.control.client import Client
from crdt_merge_node.doctor import Finding, Patient
from crdt_merge_node.doctor.software import installed
from crdt_merge_node.documents import document, plain
from crdt_merge_node.version import VERSION

from .redaction import Redactor, short_id

EVENTS_MAX: Final = 5000
GROUPS_MAX: Final = 50
LOG_BYTES_MAX: Final = 256 * 1024
METRICS_BYTES_MAX: Final = 4 << 20
_KEY_FILES: Final = ("identity/node.key", "identity/tls.key", "ca/ca.key")
_DEFAULTS: Final = frozenset({"default", "main", "localhost"})
"""Names that nobody chose: they tell nothing, and are words of our own texts."""
_KEY_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One file of the bundle, or the reason why it is not in it."""

    name: str
    about: str
    data: bytes = b""
    missing: str = ""


@dataclass(slots=True, kw_only=True)
class Source:
    """Where the pieces come from."""

    patient: Patient
    client: Client | None
    """None: no daemon answers."""
    findings: list[Finding] = field(default_factory=list)
    log: Path | None = None
    """A log file that was named; else that of the daemon is looked for."""
    hides_names: bool = False


def collect(source: Source) -> Iterator[Piece]:
    """Yield all pieces, redacted."""
    redactor = make_redactor(source)
    for name, about, gather in _pieces(source):
        try:
            text = gather(redactor)
        except CrdtMergeError as error:
            yield Piece(name=name, about=about, missing=redactor.text(error.message))
        except (OSError, ValueError, http.client.HTTPException) as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            yield Piece(name=name, about=about, missing=redactor.text(f"{kind}{error}"))
        else:
            data = text.encode()
            if redactor.leaks(data):
                # Cannot happen while the redactor does its work; if it does not, nothing leaves this machine.
                yield Piece(name=name, about=about, missing="it holds a secret and is left out")
            else:
                yield Piece(name=name, about=about, data=data)


def make_redactor(source: Source) -> Redactor:
    """Return what hides the secrets of this machine and, if asked to, the names in its cluster."""
    patient = source.patient
    prefixes = {str(patient.data_dir): "<data>", str(Path.home()): "<home>"}
    prefixes.pop("/", None)
    secrets = [data for name in _KEY_FILES if (data := _read_file(patient, patient.data_dir / name))]
    names = _names(source) if source.hides_names else None
    return Redactor(secrets=secrets, prefixes=prefixes, names=names)


def _pieces(source: Source) -> Iterator[tuple[str, str, Callable[[Redactor], str]]]:
    """Yield name, meaning and how to get it."""
    yield "versions.json", "versions of everything", lambda _redactor: _json(_versions(source))
    yield "config.json", "settings and where they come from", lambda r: _json(r.document(_config(source)))
    yield "doctor.json", "what `doctor` found", lambda r: _json(r.document(_doctor(source)))
    client = source.client
    if client is not None:
        answers: dict[str, tuple[str, Callable[[], Mapping[str, Any]]]] = {
            "status.json": ("one screen of facts", lambda: document("status/1", client.status())),
            "why.json": ("what stands in the way", lambda: document("why/1", client.why())),
            "peers.json": ("the known nodes", lambda: document("peer-list/1", peers=client.peer_list())),
            "groups.json": ("groups with contributions and policy", lambda: _groups(client)),
            "certificate.json": ("terms of the certificate", lambda: _certificate(client)),
        }
        for name, (about, ask) in answers.items():
            yield name, about, lambda r, ask=ask: _json(r.document(ask()))  # type: ignore[misc]  # mypy #15459
        yield "events.ndjson", "what happened lately", lambda r: _events(client, r)
        yield "metrics.txt", "the figures that Prometheus reads", lambda r: r.text(_metrics(client))
    yield "log.txt", f"the last {LOG_BYTES_MAX >> 10} KiB of the log", lambda r: r.lines(_log(source))


def _versions(source: Source) -> dict[str, Any]:
    import apsw

    return {
        "version": VERSION,
        "wire_version": WIRE_VERSION_MAX,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "sqlite": apsw.sqlite_lib_version(),
        "packages": installed(),
        "daemon": plain(source.client.version()) if source.client else None,
    }


def _config(source: Source) -> dict[str, Any]:
    patient = source.patient
    return {
        "problems": list(getattr(patient.config_error, "problems", ())),
        "settings": [
            {"key": key, "value": _value(value), "origin": str(origin)}
            for key, value, origin in (patient.config.items() if patient.config else ())
        ],
    }


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [str(item) for item in value] if isinstance(value, tuple | list) else str(value)


def _doctor(source: Source) -> dict[str, Any]:
    return {"findings": [plain(finding) for finding in source.findings]}


def _groups(client: Client) -> dict[str, Any]:
    known = client.group_list()
    shown = [plain(client.group_show(group.id)) for group in known[:GROUPS_MAX]]
    return {"count": len(known), "groups": shown}


def _certificate(client: Client) -> dict[str, Any]:
    return document("cert-show/1", client.certificate_show())


def _events(client: Client, redactor: Redactor) -> str:
    lines = [
        json.dumps(redactor.document(plain(event))) for event in client.events(last=EVENTS_MAX, level="debug")
    ]
    return "\n".join(lines) + "\n"


def _metrics(client: Client) -> str:
    """Ask for the metrics where the daemon serves them, on this machine only."""
    address = urlsplit(client.status().dashboard)
    if not address.hostname:
        raise ValueError("HTTP is not served (http.port is empty), and the metrics are asked for there")
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=5.0)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise ValueError(f"/metrics answers {answer.status}")
        return answer.read(METRICS_BYTES_MAX).decode("utf-8", "replace")
    finally:
        connection.close()


def _log(source: Source) -> str:
    path = source.log
    if path is None and source.patient.status is not None:
        path = Path(f"/proc/{source.patient.status.pid}/fd/2").resolve()
    if path is None:
        raise ValueError("no daemon answers; name its log with --log")
    if not path.is_file():
        raise ValueError("the daemon's log is no file; under systemd: journalctl -u crdt-merge-node")
    with source.patient.fs.open_read(path, follow=True) as file:
        nbytes = file.size()
        text = file.read_at(max(nbytes - LOG_BYTES_MAX, 0), LOG_BYTES_MAX).decode("utf-8", "replace")
    # The first line of a tail is cut in two.
    return text.partition("\n")[2] if nbytes > LOG_BYTES_MAX else text


def _names(source: Source) -> dict[str, str]:
    """Return what people named, and the ids that stand for it."""
    patient = source.patient
    names: dict[str, str] = {}
    member = patient.member
    if member is not None:
        names[member.cluster_name] = f"cluster-{member.cluster.hex()[:12]}"
    if patient.config is not None:
        for address in (*patient.config.listen.advertise, *patient.config.peers.seeds):
            names |= _host(address)
        names |= {name: short_id("host", name) for name in patient.config.http.allowed_hosts}
    names |= {platform.node(): "this-host"}
    if source.client is not None:
        names |= _cluster_names(source.client)
    return {name: alias for name, alias in names.items() if name not in _DEFAULTS}


def _cluster_names(client: Client) -> dict[str, str]:
    names: dict[str, str] = {}
    status = client.status()
    names[status.name] = f"node-{status.node[:12]}"
    for peer in status.peers:
        names[peer.name] = f"peer-{peer.id[:12]}"
        for address in peer.addresses:
            names |= _host(address)
    for group in status.groups:
        names[group.name] = f"group-{group.id[:12]}"
        for item in client.contribution_list(group.id):
            names[item.slot] = short_id("slot", item.slot)
            names |= {text: short_id("note", text) for text in item.meta.values()}
    return names


def _host(address: str) -> dict[str, str]:
    host = address.rpartition(":")[0].strip("[]")
    return {host: short_id("host", host)} if host not in ("localhost", "127.0.0.1", "::1") else {}


def _read_file(patient: Patient, path: Path) -> bytes:
    try:
        with patient.fs.open_read(path) as file:
            return file.read_at(0, _KEY_BYTES_MAX)
    except OSError:
        return b""


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=False) + "\n"
