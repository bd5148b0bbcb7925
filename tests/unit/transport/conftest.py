"""Fixtures of the transport tests: a world in memory, and nodes of two clusters."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.transport.identity import Identity, load_authority
from support.transport_world import VirtualLoop, World, member, today


@pytest.fixture
def world() -> Iterator[World]:
    loop = VirtualLoop()  # type: ignore[abstract]  # What it lacks, nodes do not use.
    yield World(loop)
    loop.close()
    assert loop.problems == []


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three members of a cluster (``a`` holds the CA) and one of another."""
    root, fs, rng = tmp_path_factory.mktemp("members"), SystemFs(), SeededRng(7)

    a = Identity.create(root / "a", "prod", fs=fs, rng=rng, now=today())
    authority = load_authority(root / "a", fs)
    assert authority is not None
    others = {name: member(root / name, authority, rng) for name in "bc"}
    stranger = Identity.create(root / "x", "dev", fs=fs, rng=rng, now=today())
    return SimpleNamespace(a=a, **others, stranger=stranger, authority=authority, root=root)
