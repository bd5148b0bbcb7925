"""Where the control socket is, and which sockets are not trusted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from crdt_merge_node.control.socket_path import (
    SOCKET_PATH_BYTES_MAX,
    check_socket,
    claim_socket,
    control_socket,
)
from crdt_merge_node.errors import ControlError


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path; pytest's own may be longer than a socket's may be."""
    with TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def _listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


def test_the_socket_is_in_the_data_directory_if_it_fits(short: Path) -> None:
    assert control_socket(short) == short / "control.sock"


def test_a_long_data_directory_has_a_short_socket_of_its_own(tmp_path: Path) -> None:
    one, two = (tmp_path / ("ü" * 60) / name for name in ("one", "two"))

    assert len(str(control_socket(one)).encode()) <= SOCKET_PATH_BYTES_MAX
    assert control_socket(one) == control_socket(one)
    assert control_socket(one) != control_socket(two)
    assert str(os.geteuid()) in control_socket(one).parent.name


def test_relative_and_absolute_names_of_a_directory_agree(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short)

    assert control_socket(Path("data")) == control_socket(short / "data")


def test_claiming_makes_a_private_directory(short: Path) -> None:
    claim_socket(short / "run" / "x.sock")

    assert (short / "run").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_can_write_is_refused(short: Path) -> None:
    (short / "run").mkdir()
    (short / "run").chmod(0o777)

    with pytest.raises(ControlError, match="nobody else can write"):
        claim_socket(short / "run" / "x.sock")


def test_a_link_in_place_of_the_directory_is_refused(short: Path) -> None:
    (short / "elsewhere").mkdir(mode=0o700)
    (short / "run").symlink_to(short / "elsewhere")

    with pytest.raises(ControlError, match="must be a directory of this user"):
        claim_socket(short / "run" / "x.sock")


def test_a_file_in_the_way_is_refused_and_kept(short: Path) -> None:
    (short / "x.sock").write_text("precious")

    with pytest.raises(ControlError, match="not a socket"):
        claim_socket(short / "x.sock")
    assert (short / "x.sock").read_text() == "precious"


def test_a_stale_socket_is_no_obstacle(short: Path) -> None:
    _listen(short / "x.sock").close()

    claim_socket(short / "x.sock")


def test_a_path_longer_than_the_kernel_allows_is_refused(short: Path) -> None:
    with pytest.raises(ControlError, match="longer than 107 bytes"):
        claim_socket(short / ("x" * 108))


def test_only_a_socket_counts_as_one(short: Path) -> None:
    (short / "file").write_text("")
    server = _listen(short / "x.sock")

    assert check_socket(short / "x.sock")
    assert not check_socket(short / "file")
    assert not check_socket(short / "none")
    assert not check_socket(short / "file" / "below")
    server.close()


def test_a_socket_of_another_user_is_not_spoken_to(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _listen(short / "x.sock")
    if os.geteuid() == 0:
        os.chown(short / "x.sock", 4711, 4711)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)

    with pytest.raises(ControlError, match="belongs to user"):
        check_socket(short / "x.sock")
    server.close()
