"""``run``: the daemon in the foreground, one banner, then its log on stderr."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .options import Invocation, command
from .output import clean, facts, say, say_json, short, size

_LOOPBACK = ("127.", "localhost", "[::1]")
_LOCAL = (*_LOOPBACK, "0.0.0.0", "[::]")  # noqa: S104  Compared with, not bound.


@click.command()
@click.option(
    "--config", type=click.Path(dir_okay=False), help="TOML file; else config.toml of the data directory."
)
@click.option("--name", help="What people call this node.")
@click.option("--host", help="Address to listen on for peers.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on for peers; 0: any free one.")
@click.option("--advertise", metavar="HOST:PORT", multiple=True, help="Address that peers should dial.")
@click.option("--seed", "seeds", metavar="HOST:PORT", multiple=True, help="A peer to dial at start.")
@click.option("--http-port", metavar="PORT", help="Of dashboard and probes; 0: any free one; '': none.")
@click.option("--alone", is_flag=True, help="After a restore: do not wait for a peer, there is none.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]))
@command
def run(
    invocation: Invocation,
    *,
    config: str | None,
    name: str | None,
    host: str | None,
    port: int | None,
    advertise: tuple[str, ...],
    seeds: tuple[str, ...],
    http_port: str | None,
    alone: bool,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the node until it is interrupted.

    Every setting can also be written to config.toml or given as CRDT_MERGE_NODE_SECTION__KEY. Exit status 78
    if the configuration is wrong: then a restart would not help.
    """
    from crdt_merge_node.config import load_config
    from crdt_merge_node.daemon import run as run_daemon

    flags: dict[str, Any] = {
        "node.data_dir": str(invocation.data_dir),
        "node.name": name,
        "listen.host": host,
        "listen.port": port,
        "listen.advertise": advertise or None,
        "peers.seeds": seeds or None,
        "http.port": http_port,
        "log.level": log_level,
        "log.format": log_format,
    }
    loaded = load_config(Path(config) if config else None, flags, os.environ)

    if alone:
        _accept_alone(invocation.data_dir)

    def on_ready(found: Mapping[str, Any]) -> None:
        if invocation.is_json:
            say_json("run/1", event="ready", **found)
        else:
            say(banner(found))

    raise click.exceptions.Exit(run_daemon(loaded, on_ready=on_ready))


def _accept_alone(data_dir: Path) -> None:
    """Let a restored node be trusted to know all that happened, because nobody else can."""
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.storage import DataDir
    from crdt_merge_node.storage.restore import is_marked, unmark

    fs = SystemFs()
    if not is_marked(data_dir, fs):
        return
    data = DataDir.open(data_dir, fs=fs)  # Not behind the back of a daemon that runs.
    try:
        unmark(data_dir, fs)
    finally:
        data.close()


def banner(found: Mapping[str, Any]) -> str:
    """Return what ``run`` prints once, when the node is ready.

    Args:
        found: Any of ``version``, ``node`` and ``cluster`` (hex), ``name``, ``cluster_name``, ``listen``,
            ``advertise`` (sequence), ``tls`` (text), ``data_dir``, ``store_bytes``, ``free_bytes``, ``seeds``
            (sequence), ``socket``, ``dashboard``, ``groups`` and ``operations`` (counts). Missing ones are
            left out.
    """

    def text(key: str) -> str:
        value = found.get(key)
        return "" if value is None else str(value)

    advertised = [str(address) for address in found.get("advertise") or ()]
    cluster = f"{text('cluster_name')} ({short(text('cluster'))})" if found.get("cluster") else ""
    store = f"{text('data_dir')}: {size(found.get('store_bytes') or 0)}"
    if found.get("free_bytes") is not None:
        store += f", {size(found['free_bytes'])} free"
    lines = [
        f"crdt-merge-node {text('version')}",
        facts(
            (
                ("node", f"{text('node')} {text('name')}".strip()),
                ("cluster", cluster),
                ("listen", text("listen")),
                ("advertised", ", ".join(advertised) or "the address by which each peer came"),
                ("tls", text("tls") or "1.3, both sides authenticated"),
                ("store", store if found.get("data_dir") else ""),
                ("seeds", ", ".join(str(seed) for seed in found.get("seeds") or ()) or "none"),
                ("groups", text("groups")),
                ("operations", text("operations")),
                ("control", text("socket")),
                ("dashboard", text("dashboard")),
            )
        ),
    ]
    lines += [
        f"warning: only this machine can dial {clean(address)}; set listen.advertise to what peers reach"
        for address in advertised
        if address.startswith(_LOCAL)
    ]
    dashboard = text("dashboard")
    if dashboard and not dashboard.removeprefix("http://").startswith(_LOOPBACK):
        lines.append("warning: other machines can read dashboard and metrics: http.host is not loopback")
    return "\n".join(lines)
