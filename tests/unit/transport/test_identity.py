"""The identity files (SCENARIOS B71)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from crdt_merge_node.errors import ConfigError, CorruptError, NotFoundError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.transport.certificates import cluster_id
from crdt_merge_node.transport.identity import Identity, load_authority
from support.transport_world import member, today

FS = SystemFs()


@pytest.fixture
def data_dir(members: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the data directory of node a, who holds the CA."""
    shutil.copytree(members.root / "a", tmp_path / "a")
    return tmp_path / "a"


def test_a_new_cluster_has_one_member_who_holds_the_ca(data_dir: Path, members: SimpleNamespace) -> None:
    identity, authority = Identity.load(data_dir, FS), load_authority(data_dir, FS)

    assert authority is not None
    assert identity.cluster == cluster_id(authority.certificate) == members.a.cluster
    assert (identity.node, identity.cluster_name) == (members.a.node, "prod")
    assert identity.certificate_expires_at > today() + 800 * 86400


def test_other_members_do_not_hold_the_ca(members: SimpleNamespace) -> None:
    assert load_authority(members.root / "b", FS) is None


def test_private_keys_are_for_their_owner_alone(data_dir: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in data_dir.rglob("*.key")}

    assert modes == {"node.key": 0o600, "tls.key": 0o600, "ca.key": 0o600}
    assert {(data_dir / name).stat().st_mode & 0o777 for name in ("identity", "ca")} == {0o700}


@pytest.mark.parametrize("name", ["identity/node.key", "identity/tls.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_private_key_that_others_can_touch_is_refused_with_the_remedy(
    data_dir: Path, name: str, mode: int
) -> None:
    (data_dir / name).chmod(mode)

    with pytest.raises(ConfigError, match=r"lets others read a private key\. Run `chmod 600"):
        Identity.load(data_dir, FS)


def test_a_ca_key_that_others_can_read_is_refused(data_dir: Path) -> None:
    (data_dir / "ca" / "ca.key").chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 600"):
        load_authority(data_dir, FS)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), bytes(100_000)])
def test_a_short_or_long_node_key_is_damage(data_dir: Path, seed: bytes) -> None:
    (data_dir / "identity" / "node.key").write_bytes(seed)

    with pytest.raises(CorruptError, match=r"node\.key"):
        Identity.load(data_dir, FS)


def test_the_key_of_another_node_is_refused(data_dir: Path) -> None:
    (data_dir / "identity" / "node.key").write_bytes(bytes(32))

    with pytest.raises(ConfigError, match=r"node.key is the key of node \w{12} and tls.crt the certificate"):
        Identity.load(data_dir, FS)


@pytest.mark.parametrize("name", ["tls.key", "tls.crt", "ca.crt"])
def test_files_of_another_member_are_refused(data_dir: Path, members: SimpleNamespace, name: str) -> None:
    shutil.copy(members.root / "x" / "identity" / name, data_dir / "identity" / name)

    with pytest.raises((ConfigError, CorruptError)):
        Identity.load(data_dir, FS)


@pytest.mark.parametrize("name", ["tls.key", "tls.crt", "ca.crt", "cluster.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.9])
def test_a_damaged_file_is_named(data_dir: Path, name: str, keep: float) -> None:
    path = data_dir / "identity" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])

    with pytest.raises(CorruptError):
        Identity.load(data_dir, FS)


def test_a_missing_file_is_named(data_dir: Path) -> None:
    (data_dir / "identity" / "tls.crt").unlink()

    with pytest.raises(CorruptError, match=r"tls\.crt: No such file"):
        Identity.load(data_dir, FS)


def test_facts_of_a_newer_release_are_refused(data_dir: Path) -> None:
    path = data_dir / "identity" / "cluster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))

    with pytest.raises(CorruptError, match="not what this release writes"):
        Identity.load(data_dir, FS)


def test_without_init_there_is_no_node(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="init"):
        Identity.load(tmp_path, FS)


def test_init_never_overwrites_a_node(data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="already holds a node"):
        Identity.create(data_dir, "other", fs=FS, rng=SeededRng(1), now=today())


def test_an_interrupted_init_goes_on_with_its_keys(tmp_path: Path) -> None:
    first = Identity.create(tmp_path / "n", "prod", fs=FS, rng=SeededRng(1), now=today())
    for name in ("cluster.json", "tls.crt", "ca.crt"):
        (tmp_path / "n" / "identity" / name).unlink()
    again = Identity.create(tmp_path / "n", "prod", fs=FS, rng=SeededRng(2), now=today())

    assert (again.node, again.cluster) == (first.node, first.cluster)


def test_a_renewed_certificate_keeps_the_author(tmp_path: Path, members: SimpleNamespace) -> None:
    first = member(tmp_path / "n", members.authority, SeededRng(5))
    again = member(tmp_path / "n", members.authority, SeededRng(6), now=today() + 60)

    assert again.node == first.node
    assert again.certificate_expires_at > first.certificate_expires_at
