"""``init``: make a node, and its cluster or its membership in one. Asks nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import shlex
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from crdt_merge_protocol.errors import CrdtMergeError

from .app import PROGRAM
from .ca import PASSPHRASE_FILE, read_passphrase
from .options import Invocation, command
from .output import clean, facts, note, say, say_json
from .place import find_data_dir
from .values import READABLE

if TYPE_CHECKING:
    from crdt_merge_node.config import Config
    from crdt_merge_node.transport.first_invite import FirstInvite
    from crdt_merge_node.transport.identity import Identity

FIRST_INVITE_S: Final = 86_400
"""How long the token works that is made with the cluster: as long as one of `invite`."""


@click.command()
@click.option("--join", "token", metavar="TOKEN", help="Join the cluster that issued TOKEN (see `invite`).")
@click.option(
    "--ca",
    type=READABLE,
    help="Join the cluster whose CA is in this file (see `ca export`), and hold the CA.",
)
@PASSPHRASE_FILE
@click.option("--force", is_flag=True, help="With --join: come back, with keys and data, after `leave`.")
@click.option("--cluster", default="default", show_default=True, help="Name of a new cluster.")
@click.option("--name", help="What people call this node.")
@click.option("--host", help="Address to listen on for peers.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on for peers.")
@click.option("--advertise", metavar="HOST:PORT", multiple=True, help="Address that peers should dial.")
@command
def init(
    invocation: Invocation,
    *,
    token: str | None,
    ca: str | None,
    passphrase_file: str | None,
    force: bool,
    cluster: str,
    name: str | None,
    host: str | None,
    port: int | None,
    advertise: tuple[str, ...],
) -> None:
    """Make this node: in a new cluster, or with --join or --ca in an existing one.

    A new cluster prints the line for the next machine, whose token works once, for a day. Safe to run
    again after an interruption; with --ca at any time. --name, --host, --port and --advertise are written to
    config.toml in the data directory.
    """
    if force and not token:
        raise click.UsageError("--force is for --join: coming back after `leave`.")
    given = {
        "node.name": name,
        "listen.host": host,
        "listen.port": port,
        "listen.advertise": advertise or None,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    if token and ca:
        raise click.UsageError("Give --join or --ca, not both.")
    if ca and _is_present(invocation.data_dir):
        settings = {}  # They were written when the node was made.
    config = _check(invocation, settings)
    before = _files(invocation.data_dir)
    invocation.data_dir.parent.mkdir(parents=True, exist_ok=True)
    if ca:
        identity = _certify(invocation.data_dir, Path(ca), read_passphrase(passphrase_file, is_new=False))
    else:
        identity = _join_or_create(invocation.data_dir, token, cluster, is_again=force)
    _write_settings(invocation.data_dir / "config.toml", settings)
    first = None if token or ca else _invite(invocation.data_dir, identity, config)
    written = sorted(_files(invocation.data_dir) - before)
    if invocation.is_json:
        say_json(
            "init/1",
            node=identity.node.hex(),
            cluster=identity.cluster.hex(),
            cluster_name=identity.cluster_name,
            data_dir=str(invocation.data_dir),
            written=written,
            has_ca=not token,
            join=_join_line(first) if first else None,
            join_expires=first.expires if first else None,
            next=_next(invocation, first),
        )
    else:
        _show(invocation, identity, written, first, has_ca=not token)


def _join_or_create(data_dir: Path, token: str | None, cluster: str, *, is_again: bool) -> Identity:
    return _join(data_dir, token, is_again=is_again) if token else _create(data_dir, cluster)


def _check(invocation: Invocation, settings: Mapping[str, object]) -> Config:
    """Return the configuration; refuse one that the daemon would refuse, before anything is written."""
    from crdt_merge_node.config import load_config
    from crdt_merge_node.errors import ConfigError

    config = load_config(None, {**settings, "node.data_dir": str(invocation.data_dir)}, os.environ)
    path = invocation.data_dir / "config.toml"
    if settings and path.exists():
        raise ConfigError(f"{path} is there already and is not overwritten.", hint="Edit it instead.")
    return config


def _create(data_dir: Path, cluster: str) -> Identity:
    from crdt_merge_protocol.canonical import is_name

    from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng
    from crdt_merge_node.transport.identity import Identity

    if not is_name(cluster):
        raise click.UsageError(f"{cluster!r} is no name: use A-Z a-z 0-9 . _ / - and begin with none of ./")
    return Identity.create(data_dir, cluster, fs=SystemFs(), rng=SystemRng(), now=SystemClock().now())


def _is_present(data_dir: Path) -> bool:
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.transport.identity import Identity

    return Identity.is_present(data_dir, SystemFs())


def _certify(data_dir: Path, source: Path, passphrase: bytes) -> Identity:
    from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng
    from crdt_merge_node.transport.authority_file import create_with_authority

    return create_with_authority(
        data_dir, source.absolute(), passphrase, fs=SystemFs(), rng=SystemRng(), clock=SystemClock()
    )


def _join(data_dir: Path, token: str, *, is_again: bool) -> Identity:
    from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng, TcpNet
    from crdt_merge_node.transport.join import join

    work = join(
        token,
        data_dir,
        fs=SystemFs(),
        net=TcpNet(),
        clock=SystemClock(),
        rng=SystemRng(),
        is_again=is_again,
    )
    return _come_back(data_dir, work) if is_again else asyncio.run(work)


def _come_back(data_dir: Path, work: Coroutine[Any, Any, Identity]) -> Identity:
    """Join again with a node that has left; until that is done it has."""
    from crdt_merge_node.errors import ConfigError
    from crdt_merge_node.leaving import come_back, has_left
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.storage import DataDir

    if not has_left(data_dir, SystemFs()):
        work.close()
        raise ConfigError(
            f"the node in {data_dir} has not left its cluster.",
            hint="Its certificate has expired? Then: crdt-merge-node cert renew --join TOKEN",
        )
    data = DataDir.open(data_dir)
    try:
        identity = asyncio.run(work)
        come_back(data_dir, SystemFs())
    finally:
        data.close()
    return identity


def _invite(data_dir: Path, identity: Identity, config: Config) -> FirstInvite | None:
    """Return the token for the next machine; none if nobody can tell yet where this one will be reached."""
    from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng
    from crdt_merge_node.telemetry.logging import configure_logging
    from crdt_merge_node.transport.first_invite import expected_addresses, make_first_invite

    configure_logging(level="warning", form=config.log.format)
    addresses = expected_addresses(config.listen.host, config.listen.port, config.listen.advertise)
    if not addresses:
        return None
    work = make_first_invite(
        data_dir,
        identity,
        addresses,
        expires_s=FIRST_INVITE_S,
        fs=SystemFs(),
        clock=SystemClock(),
        rng=SystemRng(),
    )
    try:
        return asyncio.run(work)
    except CrdtMergeError as error:
        # The node is made, and `invite` does the same later; a full disk also stops `run`, which says so.
        note(f"no invitation was made: {clean(error.message)}")
        return None


def _files(data_dir: Path) -> set[str]:
    return {str(path) for path in data_dir.rglob("*") if path.is_file()}


def _write_settings(path: Path, settings: Mapping[str, object]) -> None:
    if not settings:
        return
    from crdt_merge_node.ports import SystemFs, replace_file

    lines: list[str] = []
    for section in ("node", "listen"):
        values = {key: value for key, value in settings.items() if key.startswith(f"{section}.")}
        if values:
            # A JSON string, number or array of strings is a TOML one too.
            lines.append(f"[{section}]")
            lines += [f"{key.partition('.')[2]} = {json.dumps(value)}" for key, value in values.items()]
    replace_file(SystemFs(), path, ("\n".join(lines) + "\n").encode())


def _join_line(first: FirstInvite) -> str:
    return f"{PROGRAM} init --join {first.token}"


def _next(invocation: Invocation, first: FirstInvite | None) -> list[str]:
    return [f"{_program(invocation)} run", *([] if first else [f"{_program(invocation)} invite"])]


def _program(invocation: Invocation) -> str:
    """Return the program with what it needs to find this node in another shell."""
    if invocation.data_dir == find_data_dir(None, os.environ):
        return PROGRAM
    return f"{PROGRAM} --data-dir {shlex.quote(str(invocation.data_dir))}"


def _show(
    invocation: Invocation,
    identity: Identity,
    written: list[str],
    first: FirstInvite | None,
    *,
    has_ca: bool,
) -> None:
    say(f"node {identity.node.hex()}")
    say(
        facts(
            (
                ("cluster", f"{clean(identity.cluster_name)} ({identity.cluster.hex()})"),
                ("data", str(invocation.data_dir)),
                *(("written", path) for path in written),
            )
        )
    )
    say("")
    say(f"Start it:                          {_program(invocation)} run")
    if not has_ca:
        return
    if first:
        until = dt.datetime.fromtimestamp(first.expires, dt.UTC)
        say(f"Then, on the next machine:         {_join_line(first)}")
        where = " or ".join(first.addresses)
        say(f"  (works once, until {until:%Y-%m-%d %H:%M} UTC, on a machine that reaches {where})")
        say(f"For every further one, a new line: {_program(invocation)} invite")
    else:
        say("Then, for the line that the next")
        say(f"machine needs (init --join ...):   {_program(invocation)} invite")
    say("")
    say(f"{invocation.data_dir / 'ca' / 'ca.key'} is what admits nodes to the cluster: keep a safe copy.")
