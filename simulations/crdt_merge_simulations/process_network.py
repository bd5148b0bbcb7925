"""Networks for real processes, and how they are cut.

``namespaces`` (needs root): every daemon has a network namespace of its own, with a virtual cable to one
bridge, all inside a namespace that belongs to the run and ends with it. Nothing from one node to another
passes while a blackhole route stands in the sender's namespace: connections stay open and fall silent, in
one direction or in both, as with a broken switch. ``ip`` is all that it needs.

``loopback``: every daemon has its own 127.x address, and a cut is made of ``peer block`` on one side:
connections end, and new ones are refused. That works anywhere, in both directions only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from crdt_merge_node.control.model import PeerState
from crdt_merge_node.errors import ControlError, NotFoundError
from crdt_merge_protocol.errors import CrdtMergeError

from .process_cluster import ProcessCluster

Cut = tuple[int, int]
"""Nothing from the first node to the second passes."""

BLOCKING_TIMEOUT_S: Final = 30.0
_NAMESPACES: Final = Path("/run/netns")
_UNSHARE: Final = (
    *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("--propagation", "private"),
)


class Network(Protocol):
    """Addresses of daemons, and cuts between them."""

    is_one_way: bool
    """Whether one direction can be cut alone."""

    def address(self, number: int) -> str:
        """Return the host of a node."""

    def namespace(self, number: int) -> str:
        """Return the file of its network namespace, or ``-``."""

    async def open(self, count: int) -> None:
        """Make what the nodes need."""

    async def set_cuts(self, cuts: frozenset[Cut], cluster: ProcessCluster) -> None:
        """Make exactly these cuts stand."""

    async def started(self, number: int, cluster: ProcessCluster) -> None:
        """Make the cuts stand that concern a node which was down."""


def isolation() -> tuple[str, ...]:
    """Return the command that runs another one in namespaces of its own, which all end with it; or nothing.

    Nothing is returned where that is not possible: without root, without the tools, or in a container that
    forbids it.
    """
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("unshare", "ip", "mount")):
        return ()
    probe = (
        "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link add b0 type bridge"
        " && ip netns add n0 && ip link add v0 type veth peer name eth0 netns n0"
        " && ip -n n0 route add blackhole 10.0.0.1/32"
    )
    done = subprocess.run([*_UNSHARE, "sh", "-c", probe], capture_output=True, timeout=20, check=False)  # noqa: S603
    return _UNSHARE if done.returncode == 0 else ()


class LoopbackNetwork:
    """Own addresses on loopback; cuts by ``peer block``."""

    is_one_way = False

    def __init__(self) -> None:
        self._blocks: dict[int, set[int]] = defaultdict(set)
        """Who is to be blocked, by blocking node."""

    def address(self, number: int) -> str:
        """Return 127.1.x.y."""
        return f"127.1.{number // 250}.{number % 250 + 1}"

    def namespace(self, number: int) -> str:  # noqa: ARG002  The other network has one per node.
        """Return ``-``: all live in the namespace of this process."""
        return "-"

    async def open(self, count: int) -> None:
        """Do nothing: all of 127/8 is there."""

    async def set_cuts(self, cuts: frozenset[Cut], cluster: ProcessCluster) -> None:
        """Block on one side of every pair, half of the pairs on each."""
        wanted: dict[int, set[int]] = defaultdict(set)
        for pair in {(min(cut), max(cut)) for cut in cuts}:
            blocker, blocked = pair if sum(pair) % 2 else pair[::-1]
            wanted[blocker].add(blocked)
        changed = [number for number in {*wanted, *self._blocks} if wanted[number] != self._blocks[number]]
        self._blocks = wanted
        await asyncio.gather(*(self.started(number, cluster) for number in sorted(changed)))

    async def started(self, number: int, cluster: ProcessCluster) -> None:
        """Compare the blocks of a node with what they shall be, and change them."""
        try:
            async with cluster[number].asking(BLOCKING_TIMEOUT_S) as client:
                present = {peer.id for peer in await client.peer_list() if peer.state == PeerState.BLOCKED}
                wanted = {cluster[peer].id for peer in self._blocks[number]}
                for peer in sorted(wanted - present):
                    with contextlib.suppress(NotFoundError):  # Never met: nothing to cut yet.
                        await client.peer_block(peer)
                for peer in sorted(present - wanted):
                    await client.peer_unblock(peer)
        except (CrdtMergeError, TimeoutError):
            return  # It is down, and will be told when it is up again.


class NamespaceNetwork:
    """A network namespace per node; cuts by blackhole routes. Only inside :func:`isolation`."""

    is_one_way = True

    def __init__(self) -> None:
        self._cuts: frozenset[Cut] = frozenset()

    def address(self, number: int) -> str:
        """Return 10.77.x.y."""
        return f"10.77.{number // 250 + 1}.{number % 250 + 1}"

    def namespace(self, number: int) -> str:
        """Return the file of the namespace."""
        return str(_NAMESPACES / f"n{number}")

    async def open(self, count: int) -> None:
        """Make the bridge, the namespaces and the cables between them."""
        _NAMESPACES.mkdir(exist_ok=True)
        await _run("mount", "-t", "tmpfs", "tmpfs", str(_NAMESPACES))
        lines = ["link set lo up", "link add bridge0 type bridge", "link set bridge0 up"]
        for number in range(count):
            lines += [
                f"netns add n{number}",
                f"link add v{number} type veth peer name eth0 netns n{number}",
                f"link set v{number} master bridge0 up",
            ]
        await _ip(lines)
        for number in range(count):
            await _ip(
                ["link set lo up", "link set eth0 up", f"addr add {self.address(number)}/16 dev eth0"],
                namespace=f"n{number}",
            )

    async def set_cuts(self, cuts: frozenset[Cut], cluster: ProcessCluster) -> None:  # noqa: ARG002
        """Add and remove routes."""
        lines: dict[int, list[str]] = defaultdict(list)
        for verb, changed in (("add", cuts - self._cuts), ("del", self._cuts - cuts)):
            for source, target in sorted(changed):
                lines[source].append(f"route {verb} blackhole {self.address(target)}/32")
        self._cuts = cuts
        await asyncio.gather(*(_ip(some, namespace=f"n{source}") for source, some in lines.items()))

    async def started(self, number: int, cluster: ProcessCluster) -> None:
        """Do nothing: routes stand whether anybody runs there or not."""


async def _ip(lines: Iterable[str], *, namespace: str | None = None) -> None:
    where = () if namespace is None else ("-n", namespace)
    await _run("ip", *where, "-batch", "-", stdin="\n".join(lines) + "\n")


async def _run(*command: str, stdin: str = "") -> None:
    """Run a program.

    Raises:
        ControlError: It failed.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate(stdin.encode())
    if process.returncode:
        raise ControlError(f"{' '.join(command)}: {errors.decode(errors='replace').strip()}")
