"""``host:port`` texts. IPv6 addresses stand in brackets, as in URLs."""

from __future__ import annotations

import ipaddress
from typing import Final

from crdt_merge_node.errors import ConfigError

DEFAULT_PORT: Final = 7946
_PORT_MAX: Final = 65535


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, or ``[host]:port`` for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str, *, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``.

    Raises:
        ConfigError: The text is none of these.
    """
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError(f'"{text}" is not an address.', hint="Write [ipv6]:port.")
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    elif ":" in text:
        raise ConfigError(f'"{text}" is not an address.', hint="Write an IPv6 address as [ipv6]:port.")
    if not host or any(character.isspace() for character in host):
        raise ConfigError(f'"{text}" is not an address: the host is missing.', hint="Write host:port.")
    if not port_text:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit()) or not 0 < int(port_text) <= _PORT_MAX:
        raise ConfigError(f'"{text}" is not an address: the port must be 1..{_PORT_MAX}.')
    return host, int(port_text)


def is_wildcard(host: str) -> bool:
    """Tell whether ``host`` means "every address of this machine", which nobody can dial."""
    return host in ("", "0.0.0.0", "::")  # noqa: S104  (compared, not bound)


def source_of(host: str) -> str:
    """Return what one caller cannot easily have many of: the IPv4 address, or the /64 of an IPv6 one."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address.ipv4_mapped or address) if address.version == 6 else str(address)
