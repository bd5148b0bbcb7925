"""``peer list|block|unblock``."""

from __future__ import annotations

import click

from .app import SuggestingGroup
from .completing import PEER
from .options import Invocation, command
from .output import clean, say, say_json, short
from .peer_detail import show_detail
from .status import show_peers


@click.group(cls=SuggestingGroup)
def peer() -> None:
    """See the other nodes; block, unblock or forget one."""


@peer.command("list")
@command
def list_(invocation: Invocation) -> None:
    """List every peer this node knows."""
    with invocation.client() as client:
        peers = client.peer_list()
        now = client.status().now
    if invocation.is_json:
        say_json("peer-list/1", peers=peers)
    else:
        show_peers(peers, now)


@peer.command()
@click.argument("peer", type=PEER)
@command
def show(invocation: Invocation, peer: str) -> None:
    """Show all about PEER: its connection, what it lacks or we lack, and the story of its last events."""
    with invocation.client() as client:
        found = client.peer_show(peer)
    if invocation.is_json:
        say_json("peer-show/1", found)
    else:
        show_detail(found)


@peer.command()
@click.argument("peer", type=PEER)
@command
def block(invocation: Invocation, peer: str) -> None:
    """Disconnect PEER and refuse it until `peer unblock`, also after a restart."""
    with invocation.client() as client:
        found = client.peer_block(peer)
    if invocation.is_json:
        say_json("peer-block/1", peer=found)
    else:
        say(f"peer {clean(found.name)} ({short(found.id)}) is blocked here; others may still talk to it")


@peer.command()
@click.argument("peer", type=PEER)
@command
def unblock(invocation: Invocation, peer: str) -> None:
    """Let PEER in again and dial it."""
    with invocation.client() as client:
        found = client.peer_unblock(peer)
    if invocation.is_json:
        say_json("peer-unblock/1", peer=found)
    else:
        say(f"peer {clean(found.name)} ({short(found.id)}) is let in again, state {found.state}")


@peer.command()
@click.argument("peer", type=PEER)
@command
def forget(invocation: Invocation, peer: str) -> None:
    """Give up PEER, a node that will not come back: it is not dialled any more and counts as left.

    If it does come back by itself, it is let in as before. Every node forgets for itself.
    """
    with invocation.client() as client:
        found = client.peer_forget(peer)
    if invocation.is_json:
        say_json("peer-forget/1", peer=found)
    else:
        say(f"peer {clean(found.name)} ({short(found.id)}) is given up, state {found.state}")
