"""A bundle holds what a report needs and nothing that anybody could misuse."""

from __future__ import annotations

import base64
import dataclasses
import errno
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from crdt_merge_node.bundle import Piece, Redactor, Source, collect, write_bundle
from crdt_merge_node.cli.app import root
from crdt_merge_node.control.model import Alarm, LogEvent
from crdt_merge_node.control.socket_path import not_running
from crdt_merge_node.doctor import Patient
from crdt_merge_node.errors import FullError, InvalidRequestError
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.transport.identity import Identity
from support import nodes

FS = SystemFs()
TOKEN = "cmn1-" + "mfrggzdfmztwq2lk" * 4
KEYS = ("identity/node.key", "identity/tls.key", "ca/ca.key")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A node with the CA, in a directory with a telling name."""
    directory = tmp_path / "customer-acme"
    Identity.create(directory, "acme-prod", fs=FS, rng=SystemRng(), now=1_750_000_000.0)
    return directory


def forms(secret: bytes) -> list[bytes]:
    """Return how a secret could be written, apart from what the redactor thinks of."""
    der = base64.b64decode(b"".join(secret.splitlines()[1:-1])) if secret.startswith(b"-----") else secret
    raw = der[-32:]
    body = secret.splitlines()[1:-1] if secret.startswith(b"-----") else []
    return [secret, raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), *body]


class Hostile:
    """A client of a node whose every text holds what must not get out."""

    def __init__(self, data_dir: Path, log: Path) -> None:
        self.keys = [(data_dir / name).read_bytes() for name in KEYS]
        texts = [key.decode("latin-1") for key in self.keys]
        texts += [self.keys[0].hex(), base64.b64encode(self.keys[0]).decode(), TOKEN, TOKEN.upper()]
        texts += [f"{data_dir}/identity/tls.key", "/srv/secret-client/model.safetensors"]
        self.text = " | ".join(texts)
        log.write_text(self.text + "\n" + json.dumps({"event": "x", "path": self.text}) + "\n")
        alarm = Alarm(severity="error", code="E1502", message=self.text, hint=self.text)
        peer = dataclasses.replace(nodes.ALIVE, last_error=self.text)
        self.answer = dataclasses.replace(
            nodes.STATUS, alarms=(alarm,), peers=(peer,), data_dir=str(data_dir), dashboard=""
        )

    def status(self) -> Any:
        return self.answer

    def why(self) -> Any:
        return dataclasses.replace(nodes.WHY, alarms=self.answer.alarms)

    def version(self) -> Any:
        return None

    def peer_list(self) -> Any:
        return self.answer.peers

    def group_list(self) -> Any:
        return self.answer.groups

    def group_show(self, _group: str) -> Any:
        own = dataclasses.replace(nodes.OWN, reason=self.text, meta={"note": self.text})
        return {"info": nodes.GROUP_INFO, "contributions": (own,)}

    def contribution_list(self, _group: str) -> Any:
        return (nodes.OWN,)

    def certificate_show(self) -> Any:
        return {"node": nodes.NODE}

    def events(self, **_: Any) -> Iterator[LogEvent]:
        yield LogEvent(seq=1, time=1.0, level="info", event="peer.left", fields={"reason": self.text})


def make(data_dir: Path, tmp_path: Path, *, hides_names: bool) -> list[Piece]:
    client = Hostile(data_dir, tmp_path / "daemon.log")
    patient = Patient(data_dir=data_dir, status=client.status())
    source = Source(
        patient=patient,
        client=client,  # type: ignore[arg-type]
        log=tmp_path / "daemon.log",
        hides_names=hides_names,
    )
    return list(collect(source))


@pytest.mark.parametrize("hides_names", [False, True])
def test_no_key_and_no_token_is_in_a_bundle_wherever_it_stood(
    data_dir: Path, tmp_path: Path, hides_names: bool
) -> None:
    pieces = make(data_dir, tmp_path, hides_names=hides_names)
    written = write_bundle(tmp_path / "b.tar.gz", pieces, created=1.0, hides_names=hides_names, fs=FS)
    with tarfile.open(written.path) as archive:
        members = [archive.extractfile(name) for name in archive.getnames()]
        data = b"\0".join(member.read() for member in members if member is not None)

    assert {piece.name for piece in pieces if not piece.missing} >= {
        "status.json", "why.json", "peers.json", "groups.json", "events.ndjson", "log.txt",
    }  # fmt: skip
    for name in KEYS:
        for form in forms((data_dir / name).read_bytes()):
            assert form not in data
            assert form.hex().encode() not in data
    assert b"cmn1-" not in data.lower()
    assert b"PRIVATE KEY" not in data
    assert b"secret-client" not in data
    assert b"customer-acme" not in data
    assert data.count(b"<token>") >= 10  # So the texts were there, and it was these that made room.


def test_without_names_nothing_tells_who_it_is(data_dir: Path, tmp_path: Path) -> None:
    kept = b"".join(piece.data for piece in make(data_dir, tmp_path, hides_names=False))
    hidden = b"".join(piece.data for piece in make(data_dir, tmp_path, hides_names=True))

    for word in (b'"alpha"', b'"beta"', b'"digits"', b"10.0.0.2", b"10.0.0.1"):
        assert word in kept
        assert word not in hidden
    assert b"peer-b2b2b2b2b2b2" in hidden
    assert b"group-c3c3c3c3c3c3" in hidden
    assert nodes.PEER.encode() in hidden  # Ids are no names.


def test_what_would_leak_all_the_same_is_left_out(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Redactor, "text", lambda _self, text: text)

    pieces = {piece.name: piece for piece in make(data_dir, tmp_path, hides_names=False)}

    assert all(pieces[name].missing for name in ("status.json", "why.json", "events.ndjson", "log.txt"))
    assert not pieces["versions.json"].missing


def test_a_piece_that_cannot_be_had_is_named_with_its_reason(data_dir: Path) -> None:
    patient = Patient(data_dir=data_dir, status_error=not_running(data_dir))
    pieces = list(collect(Source(patient=patient, client=None)))

    assert [piece.name for piece in pieces if not piece.missing] == [
        "versions.json", "config.json", "doctor.json",
    ]  # fmt: skip
    assert {piece.name: piece.missing for piece in pieces if piece.missing} == {
        "log.txt": "no daemon answers; name its log with --log"
    }


def test_an_archive_is_private_owned_by_nobody_and_lists_itself(tmp_path: Path) -> None:
    pieces = [Piece(name="a.json", about="x", data=b"{}\n"), Piece(name="b.txt", about="y", missing="gone")]
    path = tmp_path / "b.tar.gz"

    written = write_bundle(path, pieces, created=1_700_000_000.0, hides_names=True, fs=FS)

    assert path.stat().st_mode & 0o777 == 0o600
    assert written.nbytes == path.stat().st_size
    with tarfile.open(path) as archive:
        entries = archive.getmembers()
        manifest = json.load(archive.extractfile(entries[0]))  # type: ignore[arg-type]
    assert [entry.name for entry in entries] == [
        "crdt-merge-bundle/MANIFEST.json", "crdt-merge-bundle/a.json",
    ]  # fmt: skip
    assert {(entry.uid, entry.uname, entry.mode, entry.mtime) for entry in entries} == {
        (0, "", 0o600, 1_700_000_000)
    }
    assert manifest["files"] == [{"name": "a.json", "about": "x", "nbytes": 3}]
    assert manifest["missing"] == [{"name": "b.txt", "about": "y", "reason": "gone"}]
    assert manifest["names"] == "replaced"


def test_without_room_the_archive_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SystemFs, "rename", fail)

    with pytest.raises(FullError, match=r"b\.tar\.gz cannot be written: No space left"):
        write_bundle(tmp_path / "b.tar.gz", [], created=0.0, hides_names=True, fs=FS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_bytes(b"mine")

    with pytest.raises(InvalidRequestError, match="is there already"):
        write_bundle(path, [], created=1.0, hides_names=False, fs=FS)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/ann/x.json.", "see <home>/x.json."),
        ("/home/anna is another", "<path-719c231b> is another"),
        ("GET http://127.0.0.1:7947/metrics 3/4 a/b", "GET http://127.0.0.1:7947/metrics 3/4 a/b"),
        ("/etc/systemd/system/x.service", "/etc/systemd/system/x.service"),
        ("-----BEGIN PRIVATE KEY-----\nabc", "<private key>"),
        (f"init --join {TOKEN}!", "init --join <token>!"),
        ("/", "/"),
    ],
)
def test_paths_and_tokens_in_running_text(text: str, expected: str) -> None:
    assert Redactor(prefixes={"/home/ann": "<home>"}).text(text) == expected


def test_keys_of_objects_stay_and_lines_stay_objects() -> None:
    redactor = Redactor(names={"status": "group-1", "a b": "peer-2"})

    assert redactor.document({"status": "status of a b", "n": [1, None, "ab"]}) == {
        "status": "group-1 of peer-2", "n": [1, None, "ab"],
    }  # fmt: skip
    assert redactor.lines('{"status": "status"}\nstatus\n') == '{"status": "group-1"}\ngroup-1\n'


def test_what_a_name_was_replaced_by_is_left_alone() -> None:
    redactor = Redactor(names={"peer": "peer-1", "peer-1": "peer-2", "1": "slot-9"})

    assert redactor.text("peer, peer-1 and 1") == "peer-1, peer-2 and slot-9"


@pytest.mark.parametrize(
    ("text", "is_hidden"),
    [("10.1.2.3:7946", True), ("[fd00::2]:7946", True), ("127.0.0.1", False), ("0.0.0.0", False),
     ("12:34:56", False), ("2026-11-22T05:06:57", False)],
)  # fmt: skip
def test_addresses_go_with_the_names_and_times_stay(text: str, is_hidden: bool) -> None:
    assert ("<address-" in Redactor(names={}).text(text)) == is_hidden
    assert Redactor().text(text) == text


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(root, arguments)


def test_the_command_says_what_it_wrote_and_what_it_could_not(data_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.tar.gz"

    shown = _run("--data-dir", str(data_dir), "bundle", "-o", str(output), "--no-names")
    again = _run("--data-dir", str(data_dir), "bundle", "-o", str(output))

    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith(f"wrote {output}: ")
    assert "config.json" in shown.stdout
    assert "not in it: log.txt, no daemon answers" in shown.stderr
    assert again.exit_code == 2
    with tarfile.open(output) as archive:
        assert "crdt-merge-bundle/doctor.json" in archive.getnames()
        data = archive.extractfile("crdt-merge-bundle/doctor.json")
        assert data is not None
        assert b"acme" not in data.read()


def test_json_lists_the_files(data_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.tar.gz"

    answer = json.loads(_run("--data-dir", str(data_dir), "bundle", "-o", str(output), "--json").stdout)

    assert (answer["schema"], answer["path"], answer["has_names"]) == ("bundle/1", str(output), True)
    assert [item["name"] for item in answer["missing"]] == ["log.txt"]
    assert answer["nbytes"] == output.stat().st_size
