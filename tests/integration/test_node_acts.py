"""Acts of administrators on whole nodes: made on one, signed on others, in force on all (PROTOCOL R7-R13)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from crdt_merge_node.api.why_acts import act_reasons
from crdt_merge_node.control.model import Act, ActInfo, ActRequest, PolicyChanges, Reason
from crdt_merge_node.errors import (
    BannedError,
    InvalidRequestError,
    NotAdministratorError,
    NotFoundError,
    QuorumError,
)
from support.whole_nodes import Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio


async def ready(node: WholeNode, group: str = "g") -> None:
    """Wait until a group is here with all that it needs."""
    await node.until_group(group, lambda info: not info.missing_blobs)


async def propose(node: WholeNode, kind: str, *targets: str, **more: object) -> Act:
    request = ActRequest(kind=kind, targets=targets, **{"reason": "because", **more})  # type: ignore[arg-type]
    return await node.api.act_propose("g", request)


async def alone(node: WholeNode, kind: str, *targets: str, **more: object) -> ActInfo:
    """Let the one administrator of a group do something."""
    return await node.api.act_submit((await propose(node, kind, *targets, **more)).text)


async def reason_of(node: WholeNode, tag: str) -> str:
    [info] = [info for info in await node.api.contribution_list("g") if info.tag == tag]
    return info.reason


async def test_two_of_three_administrators_ban_what_a_fourth_contributed(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(4) as (first, second, third, author):
        model = save_model(tmp_path / "model.safetensors", 1.0)
        admins = (second.id.hex(), "n2")
        await first.create_group("g", model, admins=admins, quorum=2)
        await ready(author)
        added = await author.add("g", model)
        await until_agreed("g", first, second, third, author, used=1)

        act = await propose(first, "ban", added.contribution.tag, reason="copied")
        assert (act.info.needed, act.info.quorum, act.info.reason) == (1, 2, "copied")
        with pytest.raises(QuorumError, match="1 of 2 have"):
            await author.api.act_submit(act.text)
        again = await first.api.act_sign(act.text)
        assert (again.info.needed, again.info.operation) == (1, "")  # Who signs twice counts once.
        with pytest.raises(NotAdministratorError):
            await author.api.act_sign(act.text)
        signed = await third.api.act_sign(act.text)
        assert signed.info.needed == 0
        done = await author.api.act_submit(signed.text)  # Whoever submits it.
        assert (await author.api.act_submit(signed.text)).operation == done.operation

        await until_agreed("g", first, second, third, author, used=0)
        assert (await second.api.act_sign(signed.text)).info.operation == done.operation
        for node in (first, second, third, author):
            assert await reason_of(node, added.contribution.tag) == (
                f"banned: copied (act {done.operation[:12]})"
            )
            assert [info.kind for info in (await node.api.group_show("g")).acts] == ["ban"]
        with pytest.raises(BannedError, match="copied"):
            await second.add("g", model)
        await second.add("g", save_model(tmp_path / "other.safetensors", 2.0))
        await until_agreed("g", first, second, third, author, used=1)


async def test_two_administrators_change_the_policy_together(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (first, second):
        model = save_model(tmp_path / "model.safetensors", 1.0)
        await first.create_group("g", model, admins=("n1",), quorum=2)
        await ready(second)
        changes = PolicyChanges(strategy="linear")
        with pytest.raises(QuorumError):
            await first.set_policy("g", changes)
        act: Act = await last(first.api.policy_set("g", changes, propose=True))
        other: Act = await last(second.api.policy_set("g", PolicyChanges(holders=1), propose=True))
        assert "strategy: weight_average -> linear" in act.info.details
        await first.api.act_submit((await second.api.act_sign(act.text)).text)
        assert (await first.api.policy_show("g")).version == 2
        with pytest.raises(InvalidRequestError, match="version 2"):
            await first.api.act_submit((await first.api.act_sign(other.text)).text)


async def test_an_administrator_removes_what_another_contributed(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (first, second):
        model = save_model(tmp_path / "model.safetensors", 1.0)
        await first.create_group("g", model)
        await ready(second)
        older = await second.add("g", model)
        newer = await second.add("g", save_model(tmp_path / "newer.safetensors", 2.0))
        await until_agreed("g", first, second, used=1)
        with pytest.raises(NotAdministratorError):
            await propose(second, "remove", newer.contribution.tag)
        done = await alone(first, "remove", newer.contribution.tag)
        assert {item.id for item in done.items} == {older.contribution.tag, newer.contribution.tag}
        await until_agreed("g", first, second, used=0)
        assert (await reason_of(second, newer.contribution.tag)).startswith("removed by administrators")
        again = await second.add("g", model)
        await until_agreed("g", first, second, used=1)
        assert again.contribution.tag != older.contribution.tag


async def test_in_an_admitted_group_an_author_counts_once_admitted(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (first, second):
        model = save_model(tmp_path / "model.safetensors", 1.0)
        created = await first.create_group("g", model, admitted=True)
        assert "nobody is admitted yet" in created.unjudged
        await ready(second)
        early = await second.add("g", model)
        assert (await reason_of(second, early.contribution.tag)) == "its author is not admitted"
        await alone(first, "admit", "n1")
        await second.equal("g", first)
        assert (await reason_of(second, early.contribution.tag)) == "made before its author was admitted"
        await second.add("g", model)
        await until_agreed("g", first, second, used=1)
        assert (await first.info("g")).unjudged == ""


async def test_nobody_is_admitted_to_a_group_that_is_open(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", save_model(tmp_path / "model.safetensors", 1.0))
        with pytest.raises(InvalidRequestError, match="is open"):
            await propose(node, "admit", "ab" * 32)


async def test_what_a_revoked_key_signs_later_is_on_no_node(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(3) as (first, second, third):
        model = save_model(tmp_path / "model.safetensors", 1.0)
        await first.create_group("g", model)
        await ready(second)
        before = await second.add("g", model)
        await until_agreed("g", first, second, third, used=1)
        await alone(first, "revoke", second.id.hex(), reason="stolen")
        await until_agreed("g", first, second, third, used=1)
        assert (await first.api.contribution_show("g", before.contribution.tag)).state == "used"
        assert [info.kind for info in (await third.api.group_show("g")).acts] == ["revoke"]
        with pytest.raises(Exception, match="revoked"):
            await second.add("g", save_model(tmp_path / "later.safetensors", 2.0))


async def test_a_revocation_takes_back_what_was_stored(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data = [site.make(), site.make()]
    model = save_model(tmp_path / "model.safetensors", 1.0)
    async with (
        site.running(data[0], name="n0") as first,
        site.running(data[1], first.address, name="n1") as second,
    ):
        await first.create_group("g", model)
        await ready(second)
        await second.add("g", model)
        await until_agreed("g", first, second, used=1)
        await alone(first, "revoke", second.id.hex(), counts_nothing=True)
        await until_agreed("g", first, second, used=0)
        operations = (await first.info("g")).operations
        root = first.root("g")
    async with site.running(data[0], name="n0") as first:
        assert first.root("g") == root
        assert (await first.info("g")).operations == operations
        assert not [alarm for alarm in (await first.api.status()).alarms if "root" in alarm.code]


async def test_what_is_no_act_is_refused_with_a_reason(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as (node,):
        model = save_model(tmp_path / "model.safetensors", 1.0)
        await node.create_group("g", model)
        await node.add("g", model)
        act = await propose(node, "ban", "ab" * 32)
        document = json.loads(act.text)
        body = document["body"]
        damaged = [
            "", "[]", "null", "{}", "{" * 5000, "9" * 400_000, json.dumps(document | {"schema": "act/2"}),
            json.dumps(document | {"kind": "erase"}), json.dumps(document | {"kind": []}),
            json.dumps(document | {"body": body[:-2]}), json.dumps(document | {"body": "zz"}),
            json.dumps(document | {"group": "ab"}), json.dumps(document | {"group": 7}),
        ]  # fmt: skip
        for text in damaged:
            with pytest.raises(InvalidRequestError):
                await node.api.act_show(text)
        with pytest.raises(NotFoundError):
            await node.api.act_submit(json.dumps(document | {"group": "ab" * 32}))
        flipped = bytearray.fromhex(body)
        flipped[-1] ^= 1  # Of the signature.
        forged = json.dumps(document | {"body": flipped.hex()})
        assert (await node.api.act_show(forged)).needed == 1
        with pytest.raises(QuorumError):
            await node.api.act_submit(forged)
        assert (await node.api.group_show("g")).acts == ()


async def test_what_no_administrator_can_mean_is_refused(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", save_model(tmp_path / "model.safetensors", 1.0))
        for kind, targets in (("bless", ("ab" * 32,)), ("ban", ()), ("revoke", ("ab" * 32, "cd" * 32))):
            with pytest.raises(InvalidRequestError):
                await propose(node, kind, *targets)
        for kind in ("ban", "erase", "remove"):
            with pytest.raises(NotFoundError):
                await propose(node, kind, "beef")
        with pytest.raises(InvalidRequestError, match="a reason"):
            await propose(node, "ban", "ab" * 32, reason="x" * 2000)
        with pytest.raises(InvalidRequestError, match="cannot come from"):
            await node.create_group("h", tmp_path / "model.safetensors", quorum=2)


def why(node: WholeNode) -> dict[str, Reason]:
    """Return what `why` says of acts in group g, by what is lacking, without its numbers."""
    group = node.group("g")
    assert group is not None
    return {reason.lacks.lstrip("0123456789 "): reason for reason in act_reasons(node.services, group)}


async def test_why_names_what_administrators_keep_from_counting_and_the_remedy(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (first, second):
        model = save_model(tmp_path / "model.safetensors", 1.0)
        await first.create_group("g", model, admitted=True)
        await ready(second)
        await first.equal("g", second)
        [other] = why(second).values()
        assert (
            other.remedy
            == f"on a node of an administrator (n0): crdt-merge-node group admit g {second.id.hex()}"
        )
        early = await second.add("g", model)
        assert why(first) == {}  # It has contributed nothing.
        await first.add("g", model)
        await second.equal("g", first)
        await first.equal("g", second)
        [own] = why(first).values()
        assert own.remedy == f"crdt-merge-node group admit g {first.id.hex()}"
        await alone(first, "admit", "n0")
        await first.api.contribution_remove("g", "main")
        await alone(first, "admit", second.id.hex())
        await until_agreed("g", first, second, used=0)
        await second.equal("g", first)
        assert why(first) == {}
        [reason] = why(second).values()
        assert (reason.missing, reason.lacks) == (
            (early.contribution.tag,),
            "1 of its own contributions, made before it was admitted",
        )
        added = await second.add("g", model)
        await until_agreed("g", first, second, used=1)
        await second.equal("g", first)
        assert why(second) == {}
        await alone(first, "ban", added.contribution.tag, reason="copied")
        await until_agreed("g", first, second, used=0)
        await second.equal("g", first)
        reason = why(second)["of its own contributions, which administrators hid"]
        assert reason.waiting.startswith("banned: copied (act ")
        await alone(first, "revoke", second.id.hex(), reason="stolen")
        await until_agreed("g", first, second, used=0)
        await second.equal("g", first)
        [reason] = why(second).values()
        assert reason.lacks == "a key that counts in this group"
        assert reason.waiting.startswith("its key was revoked: stolen (act ")
        with pytest.raises(InvalidRequestError, match="was revoked"):
            await second.add("g", save_model(tmp_path / "other.safetensors", 3.0))


async def test_why_names_the_nodes_that_have_not_erased(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data = [site.make(), site.make()]
    async with site.running(data[0], name="n0") as first:
        async with site.running(data[1], first.address, name="n1") as second:
            model = save_model(tmp_path / "model.safetensors", 1.0)
            await first.create_group("g", model)
            await ready(second)
            added = await second.add("g", model)
            await until_agreed("g", first, second, used=1)
        act = await alone(first, "erase", added.contribution.tag, reason="not ours")
        await first.until(
            lambda: bool(first.services.engine.replicas[first.group("g")].state.view.decided.receipts)
        )
        [group] = (await first.api.why("g")).groups
        [reason] = [reason for reason in group.reasons if "receipt" in reason.lacks]
        assert (reason.subject, reason.subject_name, reason.missing) == (
            second.id.hex(),
            "n1",
            (act.operation,),
        )
        assert reason.remedy.endswith("crdt-merge-node peer forget n1")
        await first.api.peer_forget("n1")
        [group] = (await first.api.why("g")).groups
        assert not [reason for reason in group.reasons if "receipt" in reason.lacks]
