"""`ca export|import` and `cert` without a daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs
from crdt_merge_node.transport.identity import Identity, load_authority
from support.transport_world import member

PASSPHRASE = "correct horse battery"


def _run(data_dir: Path, *arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(root, ["--data-dir", str(data_dir), *arguments], input=stdin)


@pytest.fixture
def holder(tmp_path: Path) -> Path:
    fs, now = SystemFs(), SystemClock().now()
    Identity.create(tmp_path / "holder", "prod", fs=fs, rng=SeededRng("holder"), now=now)
    return tmp_path / "holder"


@pytest.fixture
def other(tmp_path: Path, holder: Path) -> Path:
    member(tmp_path / "other", load_authority(holder, SystemFs()), SeededRng("other"))
    return tmp_path / "other"


def _export(holder: Path, file: Path) -> Any:
    return _run(holder, "ca", "export", str(file), "--passphrase-file", "-", stdin=f"{PASSPHRASE}\n")


def test_an_exported_ca_lets_another_node_of_the_cluster_admit(
    holder: Path, other: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    exported = _export(holder, file)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE + "\n")
    imported = _run(other, "ca", "import", str(file), "--passphrase-file", str(passphrase), "--json")

    assert exported.exit_code == 0, exported.stderr
    assert json.loads(imported.stdout)["needs_restart"] is False
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED PRIVATE KEY" in file.read_bytes()
    seed = load_authority(holder, SystemFs()).key.private_bytes_raw()
    assert seed not in file.read_bytes()
    assert load_authority(other, SystemFs()).key.private_bytes_raw() == seed
    assert (other / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600


def test_an_export_never_overwrites(holder: Path, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("something else")

    result = _export(holder, file)

    assert result.exit_code == 78
    assert file.read_text() == "something else"


def test_a_wrong_passphrase_is_refused_and_nothing_is_written(
    holder: Path, other: Path, tmp_path: Path
) -> None:
    _export(holder, tmp_path / "ca.pem")

    result = _run(other, "ca", "import", str(tmp_path / "ca.pem"), "--passphrase-file", "-", stdin="wrong\n")

    assert result.exit_code == 5
    assert "passphrase is wrong" in result.stderr
    assert load_authority(other, SystemFs()) is None


def test_the_ca_of_another_cluster_is_refused(holder: Path, tmp_path: Path) -> None:
    fs, now = SystemFs(), SystemClock().now()
    Identity.create(tmp_path / "stranger", "dev", fs=fs, rng=SeededRng("stranger"), now=now)
    _export(holder, tmp_path / "ca.pem")

    result = _run(
        tmp_path / "stranger",
        "ca",
        "import",
        str(tmp_path / "ca.pem"),
        "--passphrase-file",
        "-",
        stdin=f"{PASSPHRASE}\n",
    )

    assert result.exit_code == 5
    assert "this node is a member of" in result.stderr


def test_who_has_no_ca_has_none_to_export(other: Path, tmp_path: Path) -> None:
    result = _export(other, tmp_path / "ca.pem")

    assert result.exit_code == 4
    assert not (tmp_path / "ca.pem").exists()


def test_a_short_passphrase_is_bad_usage(holder: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "ca.pem")
    result = _run(holder, "ca", "export", file, "--passphrase-file", "-", stdin="short\n")

    assert result.exit_code == 2


def test_without_a_daemon_the_terms_come_from_the_files(holder: Path, other: Path) -> None:
    shown = json.loads(_run(other, "cert", "show", "--json").stdout)["certificate"]

    assert shown["node"] == Identity.load(other, SystemFs()).node.hex()
    assert shown["begins"] < shown["renews"] < shown["expires"] < shown["ca_expires"]
    assert shown["has_ca"] is False
    assert "this node, which holds the CA" in _run(holder, "cert", "show").stdout


def test_renewing_needs_a_daemon_or_a_token(other: Path) -> None:
    assert _run(other, "cert", "renew").exit_code == 3
    assert _run(other, "cert", "renew", "--join", "nonsense").exit_code == 78
