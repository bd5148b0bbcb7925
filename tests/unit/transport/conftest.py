"""Fixtures of the transport tests: a world in memory, and nodes of two clusters."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from support.transport_world import World, make_members, quiet_world


@pytest.fixture
def world() -> Iterator[World]:
    with quiet_world() as found:
        yield found


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three members of a cluster (``a`` holds the CA) and one of another."""
    return make_members(tmp_path_factory.mktemp("members"))
