"""Who may talk to whom: graphs from networkx, or from a file, with a delay for each link.

``complete`` and ``clustered`` let every pair talk. Up to :data:`LISTED_NODES_MAX` nodes their links are
listed like those of any other kind; beyond that a list would hold millions of links that nobody looks at, so
it is empty, and a :class:`LinkTable` draws the delay of a pair when it is asked for. Either way a pair has
the same delay, from a hash of the seed and the pair, whatever else the plan contains.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import networkx as nx
from crdt_merge_node.errors import ConfigError

from .plan import Link, Plan, Scenario, TopologySpec

LISTED_NODES_MAX: Final = 128
PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "complete": {},
    "ring": {},
    "line": {},
    "star": {},
    "grid": {"width": 0},
    "tree": {"branching": 3},
    "random_regular": {"degree": 8},
    "small_world": {"degree": 8, "rewire_ratio": 0.1},
    "scale_free": {"attach": 4},
    "clustered": {"sites": 10, "bridges": 0},
    "file": {"path": ""},
}
"""Kind -> parameter -> default. ``width`` 0: as square as possible. ``bridges``: how many links join each
pair of sites; 0: all pairs of nodes may talk."""
EVERYBODY: Final = frozenset({"complete", "clustered"})


def make_links(scenario: Scenario, seed: int) -> tuple[tuple[Link, ...], tuple[int, ...]]:
    """Return the links of a scenario, ordered, and the site of each node.

    Raises:
        ConfigError: No such graph exists (a regular graph of odd degree on an odd number of nodes, say).
    """
    topology, count = scenario.topology, scenario.nodes
    params = {**PARAMETERS[topology.kind], **topology.params}
    sites = _sites(topology.kind, params, count)
    if count == 1 or _is_implicit(topology, count):
        return (), sites
    try:
        pairs = _pairs(topology.kind, params, count, sites, Random(f"{seed}/topology"))  # noqa: S311
    except (nx.NetworkXException, ValueError, OSError) as error:
        raise ConfigError(f"topology {topology.kind} of {count} nodes: {error}") from None
    links = []
    for a, b in _connected(sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}), count):
        links.append(
            Link(a=a, b=b, latency_s=latency_s(topology, sites, seed, a, b), is_wan=sites[a] != sites[b])
        )
    return tuple(links), sites


def latency_s(topology: TopologySpec, sites: tuple[int, ...], seed: int, a: int, b: int) -> float:
    """Return the one-way delay between two nodes, drawn once per pair, in seconds."""
    low, high = topology.latency_ms if sites[a] == sites[b] else topology.wan_latency_ms
    drawn = hashlib.blake2b(f"{seed}/latency/{min(a, b)}/{max(a, b)}".encode(), digest_size=7).digest()
    return (low + (high - low) * int.from_bytes(drawn, "big") / 2**56) / 1000


class LinkTable:
    """The links of a plan, to look up."""

    def __init__(self, plan: Plan) -> None:
        self._topology, self._sites, self._seed = plan.scenario.topology, plan.sites, plan.seed
        self.is_everybody = _is_implicit(plan.scenario.topology, plan.scenario.nodes)
        """Whether every pair may talk although no links are listed."""
        self._delays: dict[tuple[int, int], float] = {}
        self._neighbours: dict[int, list[int]] = {}
        for link in plan.links:
            self._delays[link.a, link.b] = self._delays[link.b, link.a] = link.latency_s
            self._neighbours.setdefault(link.a, []).append(link.b)
            self._neighbours.setdefault(link.b, []).append(link.a)

    def latency_s(self, a: int, b: int) -> float | None:
        """Return the one-way delay between two nodes; None if they cannot talk."""
        found = self._delays.get((a, b))
        if found is None and self.is_everybody and a != b:
            found = latency_s(self._topology, self._sites, self._seed, a, b)
            self._delays[a, b] = self._delays[b, a] = found
        return found

    def neighbours(self, node: int) -> list[int]:
        """Return the nodes that one has a listed link to, ascending."""
        return sorted(self._neighbours.get(node, ()))


def _is_implicit(topology: TopologySpec, count: int) -> bool:
    is_everybody = topology.kind in EVERYBODY and not topology.params.get("bridges")
    return is_everybody and count > LISTED_NODES_MAX


def _sites(kind: str, params: Mapping[str, Any], count: int) -> tuple[int, ...]:
    sites = min(int(params["sites"]), count) if kind == "clustered" else 1
    return tuple(node * sites // count for node in range(count))


def _pairs(
    kind: str, params: Mapping[str, Any], count: int, sites: tuple[int, ...], rng: Random
) -> Iterable[tuple[int, int]]:
    seed = rng.getrandbits(32)
    graph: Any
    match kind:
        case "complete":
            return itertools.combinations(range(count), 2)
        case "ring":
            graph = nx.cycle_graph(count)
        case "line":
            graph = nx.path_graph(count)
        case "star":
            graph = nx.star_graph(count - 1)
        case "grid":
            return _grid(count, int(params["width"]) or math.isqrt(max(0, count - 1)) + 1)
        case "tree":
            graph = nx.full_rary_tree(int(params["branching"]), count)
        case "random_regular":
            graph = nx.random_regular_graph(min(int(params["degree"]), count - 1), count, seed=seed)
        case "small_world":
            degree = min(int(params["degree"]), count - 1)
            graph = nx.watts_strogatz_graph(count, degree, float(params["rewire_ratio"]), seed=seed)
        case "scale_free":
            graph = nx.barabasi_albert_graph(count, min(int(params["attach"]), count - 1), seed=seed)
        case "clustered":
            return _clustered(sites, int(params["bridges"]), rng)
        case _:
            return _from_file(Path(params["path"]), count)
    return [(int(a), int(b)) for a, b in graph.edges()]


def _grid(count: int, width: int) -> Iterable[tuple[int, int]]:
    for node in range(count):
        if (node + 1) % width and node + 1 < count:
            yield node, node + 1
        if node + width < count:
            yield node, node + width


def _clustered(sites: tuple[int, ...], bridges: int, rng: Random) -> Iterable[tuple[int, int]]:
    members: dict[int, list[int]] = {}
    for node, site in enumerate(sites):
        members.setdefault(site, []).append(node)
    for nodes in members.values():
        yield from itertools.combinations(nodes, 2)
    for one, other in itertools.combinations(sorted(members), 2):
        pairs = list(itertools.product(members[one], members[other]))
        yield from rng.sample(pairs, min(bridges, len(pairs))) if bridges else pairs


def _from_file(path: Path, count: int) -> Iterable[tuple[int, int]]:
    """Read ``a b`` lines; what follows a ``#`` is for people."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not all(word.isdecimal() and int(word) < count for word in words):
            raise ValueError(f"{path} line {number}: two node numbers below {count} are expected.")
        yield int(words[0]), int(words[1])


def _connected(pairs: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Add what a graph lacks to be in one piece: a link between the first nodes of its pieces."""
    graph: Any = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(pairs)
    first = sorted(min(piece) for piece in nx.connected_components(graph))
    return sorted(pairs + list(itertools.pairwise(first)))
