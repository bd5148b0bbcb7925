"""Connections between nodes: certificates, TLS, frames in lanes, joining. Begin at ``endpoint.py``."""

from .connection import Connection, Lane
from .contexts import ALPN_BULK, ALPN_GOSSIP, OpenSslContexts, TlsContexts
from .endpoint import Endpoint, EndpointConfig
from .identity import Identity, load_authority
from .invites import StoredInvites, create_invite
from .join import JoinService, join

__all__ = [
    "ALPN_BULK",
    "ALPN_GOSSIP",
    "Connection",
    "Endpoint",
    "EndpointConfig",
    "Identity",
    "JoinService",
    "Lane",
    "OpenSslContexts",
    "StoredInvites",
    "TlsContexts",
    "create_invite",
    "join",
    "load_authority",
]
