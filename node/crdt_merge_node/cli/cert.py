"""``cert show|renew``: the certificate that makes this node a member."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING

import click

from crdt_merge_node.errors import DaemonNotRunningError

from .app import SuggestingGroup
from .options import Invocation, command
from .output import clean, duration, facts, say, say_json

if TYPE_CHECKING:
    from crdt_merge_node.control.model import CertificateInfo


@click.group(cls=SuggestingGroup)
def cert() -> None:
    """Show until when this node's certificate is valid; renew it."""


@cert.command()
@command
def show(invocation: Invocation) -> None:
    """Show the terms of the certificate, and how renewing it goes if the daemon runs."""
    try:
        with invocation.client() as client:
            found = client.certificate_show()
    except DaemonNotRunningError:
        found = _read(invocation)
    _show(invocation, "cert-show/1", found)


@cert.command()
@click.option(
    "--join", "token", metavar="TOKEN", help="For a node whose certificate has expired: a token of `invite`."
)
@command
def renew(invocation: Invocation, token: str | None) -> None:
    """Get a new certificate now. The daemon does so by itself, two thirds into the life of each.

    With --join the daemon must be stopped; keys and data stay what they are.
    """
    if token is not None:
        found = _join_again(invocation, token)
    else:
        with invocation.client() as client:
            found = client.certificate_renew()
    _show(invocation, "cert-renew/1", found)


def _read(invocation: Invocation) -> CertificateInfo:
    """Return what the files say."""
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.renewal import read_info

    return read_info(invocation.data_dir, SystemFs())


def _join_again(invocation: Invocation, token: str) -> CertificateInfo:
    from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng, TcpNet
    from crdt_merge_node.storage import DataDir
    from crdt_merge_node.transport import join

    data = DataDir.open(invocation.data_dir)
    try:
        work = join(
            token,
            invocation.data_dir,
            fs=SystemFs(),
            net=TcpNet(),
            clock=SystemClock(),
            rng=SystemRng(),
            is_again=True,
        )
        asyncio.run(work)
    finally:
        data.close()
    return _read(invocation)


def _show(invocation: Invocation, schema: str, found: CertificateInfo) -> None:
    if invocation.is_json:
        say_json(schema, certificate=found)
        return
    now = dt.datetime.now(dt.UTC).timestamp()

    def moment(at: float) -> str:
        date = f"{dt.datetime.fromtimestamp(at, dt.UTC):%Y-%m-%d %H:%M} UTC"
        return f"{date}, in {duration(at - now)}" if at > now else f"{date}, {duration(now - at)} ago"

    say(f"certificate of node {found.node}")
    say(
        facts(
            (
                ("cluster", found.cluster),
                ("since", moment(found.begins)),
                ("renewed", moment(found.renews) if found.renews > now else "due now"),
                ("expires", moment(found.expires)),
                ("CA expires", moment(found.ca_expires)),
                (
                    "signed by",
                    "this node, which holds the CA" if found.has_ca else "a node that holds the CA",
                ),
                ("last failure", clean(found.last_error)),
                ("next attempt", moment(found.next_attempt) if found.last_error else ""),
            )
        )
    )
