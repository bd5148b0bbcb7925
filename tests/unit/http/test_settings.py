"""Where HTTP is served, as the configuration says it, and what a daemon shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from crdt_merge_node.config import load_config
from crdt_merge_node.errors import ConfigError
from crdt_merge_node.http.server import url_of


def _port(tmp_path: Path, environ: Mapping[str, str]) -> int | None:
    return load_config(None, {"node.data_dir": str(tmp_path)}, environ).http.port


@pytest.mark.parametrize(("text", "port"), [("", None), ("0", 0), ("8080", 8080)])
def test_a_port_is_a_number_any_or_none(tmp_path: Path, text: str, port: int | None) -> None:
    assert _port(tmp_path, {"CRDT_MERGE_NODE_HTTP__PORT": text}) == port


def test_http_is_served_to_this_machine_unless_told_otherwise(tmp_path: Path) -> None:
    settings = load_config(None, {"node.data_dir": str(tmp_path)}, {}).http

    assert (settings.host, settings.port, settings.allowed_hosts) == ("127.0.0.1", 7947, ())


def test_names_of_hosts_are_a_list(tmp_path: Path) -> None:
    environ = {"CRDT_MERGE_NODE_HTTP__ALLOWED_HOSTS": "node1.example, metrics.example"}

    found = load_config(None, {"node.data_dir": str(tmp_path)}, environ).http.allowed_hosts

    assert found == ("node1.example", "metrics.example")


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http\.port"):
        _port(tmp_path, {"CRDT_MERGE_NODE_HTTP__PORT": "70000"})


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (("127.0.0.1", 7947), "http://127.0.0.1:7947/"),
        (("0.0.0.0", 80), "http://127.0.0.1:80/"),
        (("::", 80), "http://[::1]:80/"),
        (("fd00::1", 80), "http://[fd00::1]:80/"),
    ],
)
def test_the_address_is_one_to_type_into_a_browser(address: tuple[str, int], url: str) -> None:
    assert url_of(address) == url
