"""The settings, each with default, range and meaning. Few on purpose: a knob is a question to a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from crdt_merge_protocol.canonical import is_name
from crdt_merge_protocol.limits import ADDRESSES_PER_PEER_MAX, MIB
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PrivateAttr

PORT_DEFAULT: Final = 7946
"""Serf's port: operators of gossiping daemons know it, and it is seldom taken."""
HTTP_PORT_DEFAULT: Final = PORT_DEFAULT + 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from."""

    kind: Literal["flag", "environment", "file", "default"]
    where: str = ""
    """The variable or the file, if any."""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".strip()


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of ``host:port`` or ``[ipv6]:port``.

    Raises:
        ValueError: The text is not an address with a port in 1..65535.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [::1]:{PORT_DEFAULT}")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not host:port, as in node1.example.org:{PORT_DEFAULT}")
    return host, int(port)


def _split_list(value: Any) -> Any:
    """Read a list from a variable or flag: items separated by commas."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _check_address(value: str) -> str:
    parse_address(value)
    return value


def _check_name(value: str) -> str:
    if value and not is_name(value):
        raise ValueError("a name is made of A-Z a-z 0-9 . _ / - and does not start with . or /")
    return value


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _expand_home(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) else value


Address = Annotated[
    str, BeforeValidator(lambda value: _check_address(value) if isinstance(value, str) else value)
]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_split_list), Field(max_length=64)]
LocalPath = Annotated[Path, BeforeValidator(_expand_home)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class NodeSection(_Section):
    """The node itself."""

    data_dir: LocalPath
    """Directory of the identity, the operation database and the blobs. One daemon each."""
    name: Annotated[str, BeforeValidator(lambda v: _check_name(v) if isinstance(v, str) else v)] = ""
    """What people call this node; shown beside its id. Not an identity."""


class ListenSection(_Section):
    """Where peers reach this node."""

    host: str = Field(default="0.0.0.0", min_length=1)  # noqa: S104  (peers come from other hosts; TLS admits)
    """Address to listen on for peers."""
    port: int = Field(default=PORT_DEFAULT, ge=0, le=65535)
    """TCP port to listen on for peers; 0 takes a free one."""
    advertise: Annotated[Addresses, Field(max_length=ADDRESSES_PER_PEER_MAX)] = ()
    """Addresses that peers should dial, if not those of this host's interfaces."""


class PeersSection(_Section):
    """How to find the first peers."""

    seeds: Addresses = ()
    """Addresses to dial at start, beside the peers remembered from before."""


class HttpSection(_Section):
    """Health probes, metrics and the dashboard: read-only, without a login."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to serve HTTP on. Whoever reaches it can see everything that `status` and `why` say."""
    port: Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(_empty_is_none)] = (
        HTTP_PORT_DEFAULT
    )
    """TCP port to serve HTTP on; 0 takes a free one, empty serves none."""
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_split_list), Field(max_length=64)] = ()
    """Names under which browsers and probes may ask for this node, beside localhost and addresses."""


class StorageSection(_Section):
    """The data directory."""

    reserve_bytes: ByteSize = Field(default=ByteSize(256 * MIB), ge=0)
    """Room left free on the file system. Below it nothing is accepted, but everything still served."""


class ResolveSection(_Section):
    """Computing merged models."""

    memory_bytes: ByteSize = Field(default=ByteSize(512 * MIB), ge=64 * MIB)
    """Budget of one resolve for tensor blocks, over all its workers."""
    workers: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, BeforeValidator(_empty_is_none)] = None
    """Worker processes of one resolve; as many as there are processors if unset."""


class LogSection(_Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, else one JSON object per line."""


class ControlSection(_Section):
    """The socket through which commands reach the daemon."""

    socket: Annotated[LocalPath | None, BeforeValidator(_empty_is_none)] = None
    """Path of the Unix socket; a short path derived from the data directory if unset."""


class Config(BaseModel):
    """All settings of a daemon. Build it with :func:`~crdt_merge_node.config.load_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: NodeSection
    listen: ListenSection = ListenSection()
    peers: PeersSection = PeersSection()
    http: HttpSection = HttpSection()
    storage: StorageSection = StorageSection()
    resolve: ResolveSection = ResolveSection()
    log: LogSection = LogSection()
    control: ControlSection = ControlSection()
    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    def origin(self, key: str) -> Origin:
        """Return where the value of ``section.key`` came from."""
        return self._origins.get(key, Origin("default"))

    def items(self) -> Iterator[tuple[str, Any, Origin]]:
        """Yield (``section.key``, value, origin) of every setting, in the order of the model."""
        for section_name in type(self).model_fields:
            section = getattr(self, section_name)
            for name in type(section).model_fields:
                key = f"{section_name}.{name}"
                yield key, getattr(section, name), self.origin(key)


def known_keys() -> dict[str, str]:
    """Return every ``section.key`` with its description."""
    keys: dict[str, str] = {}
    for section_name, section in Config.model_fields.items():
        assert isinstance(section.annotation, type)
        assert issubclass(section.annotation, BaseModel)
        for name, field in section.annotation.model_fields.items():
            keys[f"{section_name}.{name}"] = field.description or ""
    return keys
