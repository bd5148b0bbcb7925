"""``host:port`` texts."""

from __future__ import annotations

import pytest
from crdt_merge_node.errors import ConfigError
from crdt_merge_node.transport.addresses import is_wildcard, join_address, source_of, split_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node.example:1", "node.example", 1),
        ("127.0.0.1", "127.0.0.1", 7946),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]", "fe80::1%eth0", 7946),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":1", "a:0", "a:65536", "a:b", "a:-1", "::1", "[::1", "[::1]7", "a b:1", "a:\u0661", "[]:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        split_address(text)


@pytest.mark.parametrize("text", ["a:1", "[::1]:2"])
def test_reading_and_writing_are_inverse(text: str) -> None:
    assert join_address(*split_address(text)) == text


def test_nobody_can_dial_a_wildcard() -> None:
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "", "127.0.0.1")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:5::6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("not an address", "not an address"),
    ],
)
def test_a_source_is_what_one_caller_has_few_of(host: str, source: str) -> None:
    assert source_of(host) == source
