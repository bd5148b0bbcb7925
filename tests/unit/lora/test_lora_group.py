"""Policies of groups of adapters that this release cannot carry out."""

from dataclasses import replace
from typing import Any

import pytest
from crdt_merge_node.lora.group import build_adapter_job
from crdt_merge_node.ports import SystemFs
from crdt_merge_protocol.adapter_rules import AdapterRules
from crdt_merge_protocol.blobs import Schema
from crdt_merge_protocol.errors import EmptySetError, ParameterError
from crdt_merge_protocol.policy import Policy

SCHEMA = Schema.of([])
POLICY = Policy(strategy="linear", schema=SCHEMA.id, dtype="F32")


def job(policy: Policy) -> None:
    build_adapter_job(policy, AdapterRules(), SCHEMA, (), None, fs=SystemFs(), memory_bytes=1 << 26)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategy": "linea"}, "linea"),
        ({"strategy_version": 99}, "version 99"),
        ({"seed_rule": "dice"}, "dice"),
    ],
)
def test_a_policy_of_another_release_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        job(replace(POLICY, **changed))


def test_nothing_makes_no_adapter() -> None:
    with pytest.raises(EmptySetError):
        job(POLICY)
