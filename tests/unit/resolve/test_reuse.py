"""Taking tensors over from earlier outputs: how many, from where, and what if such an output has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from crdt_merge_node.errors import CorruptError
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.earlier import read_earlier
from crdt_merge_node.resolve.estimate import estimate_job
from crdt_merge_node.resolve.job import ModelInput, ResolveCancelledError
from crdt_merge_node.resolve.plan import make_plan
from crdt_merge_node.resolve.remembered import RESULTS_MAX, recall, remember
from crdt_merge_node.resolve.reuse import find_finished
from crdt_merge_node.resolve.run import run_job
from crdt_merge_node.resolve.tensor_keys import key_of
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.strategies.spherical import Slerp
from crdt_merge_protocol.tensorfile import LENGTH_BYTES
from support.resolves import FLOATS, Group, account_of, bytes_of, model

FS = SystemFs()
MODELS = (model(1), model(2))
MEAN = Group("weight_average", MODELS)
ARC = Group("slerp", MODELS)


def after(group: Group, **changes: Group) -> Group:
    """Return the group with one tensor of its first model changed."""
    first, *rest = group.models
    return replace(group, models=(first.changed("a.weight", 99), *rest), **changes)


def in_order(group: Group) -> bool:
    """Tell whether the change of a tensor left the contributions in their order: that is up to digests."""
    digests = [[each.used().digest for each in some.models] for some in (group, after(group))]
    return all(sorted(each) == each for each in digests) or all(sorted(each) != each for each in digests)


def test_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    before = MEAN.resolve(tmp_path / "out", fs=FS)
    result = after(MEAN).resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")
    fresh = after(MEAN).resolve(tmp_path / "fresh", fs=FS)

    account = json.loads(result.manifest_path.read_text())
    assert before.reused_tensors == fresh.reused_tensors == 0
    assert result.reused_tensors == len(FLOATS) - 1
    assert result.reused_bytes == 4 * 3 * 2 + 7 * 2 + 4
    assert account["reused"] == {"tensors": result.reused_tensors, "nbytes": result.reused_bytes}
    assert [each["name"] for each in account["tensors"] if not each.get("reused")] == ["a.weight", "ids"]
    assert bytes_of(result) == bytes_of(fresh)
    assert bytes_of(result) != {"": b""}


def test_a_tensor_of_another_base_is_computed_again(tmp_path: Path) -> None:
    group = Group("task_arithmetic", MODELS)
    other = replace(group, base=group.base.changed("a.weight", 99))
    group.resolve(tmp_path / "out", fs=FS)
    result = other.resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")
    fresh = other.resolve(tmp_path / "fresh", fs=FS)

    assert result.reused_tensors == len(FLOATS) - 1
    assert bytes_of(result) == bytes_of(fresh)


def test_what_a_group_wrote_is_computed_again_where_elements_must_fit() -> None:
    """Saturated elements are no result there, but an error."""
    plan = make_plan(MEAN.job(), cores=1)
    strategy, strict = get(plan.strategy), replace(plan.context, is_strict=True)

    assert plan.reuse.keys[0] == key_of(strategy, plan.context, plan.tensors[0])
    assert plan.reuse.keys[0] != key_of(strategy, strict, plan.tensors[0])


def test_passes_do_not_look_at_what_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the account tells of it all the same."""
    assert in_order(ARC), "choose other models"
    ARC.resolve(tmp_path / "out", fs=FS)
    fresh = after(ARC).resolve(tmp_path / "fresh", fs=FS)
    seen, observe = [], Slerp.observe
    monkeypatch.setattr(
        Slerp, "observe", lambda self, *args: seen.append(args[-1].tensor_index) or observe(self, *args)
    )
    result = after(ARC).resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")

    assert seen == [FLOATS.index("a.weight")]
    assert result.decisions["tensors"] == fresh.decisions["tensors"]
    assert account_of(result) == account_of(fresh)


def test_the_plan_says_how_much_would_be_taken_over(tmp_path: Path) -> None:
    MEAN.resolve(tmp_path / "out", fs=FS)
    job = after(MEAN).job()
    found = estimate_job(replace(job, earlier=read_earlier(FS, tmp_path / "out")))

    assert (found.reused_tensors, found.merged_tensors) == (len(FLOATS) - 1, 1)
    assert estimate_job(job).reused_tensors == 0


def test_workers_are_started_for_what_is_computed_not_for_what_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MEAN.resolve(tmp_path / "out", fs=FS)
    job = MEAN.job()
    read_bytes = 2 * estimate_job(job).output_bytes
    monkeypatch.setattr("crdt_merge_node.resolve.plan.INLINE_BYTES_MAX", read_bytes // 4)
    workers = [
        make_plan(replace(job, earlier=earlier), cores=2).workers
        for earlier in ({}, read_earlier(FS, tmp_path / "out"))
    ]

    assert workers == [2, 0]


def test_parameters_of_one_tensor_cost_one_tensor(tmp_path: Path) -> None:
    group = Group("dare", MODELS, {"density": "0.5"})
    group.resolve(tmp_path / "out", fs=FS)
    other = replace(group, params={"density": "a.*=0.75;0.5"})
    result = other.resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")

    assert result.reused_tensors == len(FLOATS) - 1
    assert bytes_of(result) == bytes_of(other.resolve(tmp_path / "fresh", fs=FS))


@pytest.mark.parametrize(("scope", "kept"), [("root", 0), ("contribution", 0)])
def test_masks_of_a_contribution_that_changed_are_new(tmp_path: Path, scope: str, kept: int) -> None:
    group = Group("dare", MODELS, {"seed_scope": scope})
    group.resolve(tmp_path / "out", fs=FS)
    result = after(group).resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")

    assert result.reused_tensors == kept


def test_a_contribution_that_came_back_finds_its_output_elsewhere(tmp_path: Path) -> None:
    whole = MEAN.resolve(tmp_path / "whole", fs=FS)
    replace(MEAN, models=MODELS[:1]).resolve(tmp_path / "without", fs=FS, earlier=tmp_path / "whole")
    again = MEAN.resolve(tmp_path / "again", fs=FS, earlier=tmp_path / "whole")

    assert again.reused_tensors == len(FLOATS)
    assert again.output_digest == whole.output_digest


def test_elements_that_did_not_fit_are_told_again(tmp_path: Path) -> None:
    big = dict.fromkeys(model(0).seeds, 3)
    models = tuple(replace(model(0), seeds=big, weight=weight) for weight in (1, 30))
    group = Group("task_arithmetic", models, dtype="F16")
    first = group.resolve(tmp_path / "out", fs=FS)
    other = replace(group, params={"lambda": "a.*=0.5;1"})
    result = other.resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")
    fresh = other.resolve(tmp_path / "fresh", fs=FS)

    assert any("did not fit" in warning for warning in first.warnings)
    assert result.reused_tensors
    assert result.warnings == fresh.warnings


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-14] ^= 1  # Behind it are twelve bytes of integers, which come from the inputs anyway.
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def rename_a_tensor(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:LENGTH_BYTES] + raw[LENGTH_BYTES:].replace(b"c.bias", b"c.bia5", 1))


@pytest.mark.parametrize("damage", [flip, cut, rename_a_tensor, Path.unlink])
def test_an_output_that_changed_under_its_account_is_noticed(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    ARC.resolve(tmp_path / "out", fs=FS)
    damage(tmp_path / "out")
    result = ARC.resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")

    assert bytes_of(result) == bytes_of(ARC.resolve(tmp_path / "fresh", fs=FS))
    assert result.reused_tensors == (len(FLOATS) - 1 if damage is rename_a_tensor else 0)


def test_an_output_that_goes_while_it_is_copied_is_noticed(tmp_path: Path) -> None:
    ARC.resolve(tmp_path / "out", fs=FS)
    job = replace(ARC.job(), earlier=read_earlier(FS, tmp_path / "out"))
    (tmp_path / "out").unlink()
    result = run_job(job, tmp_path / "out", fs=FS)

    assert result.reused_tensors == 0
    assert bytes_of(result) == bytes_of(ARC.resolve(tmp_path / "fresh", fs=FS))


NONSENSE = {
    "a number": 5,
    "text": "x",
    "a number for an arc": [[[], {"Arc": 3}]],
    "a class of its own": [[[], {"int": "3"}]],
    "an arc of text": [[[], {"Arc": ["x", "y", []]}]],
    "an object": {"rule": []},
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_account_that_says_nonsense_of_a_tensor_spoils_nothing(tmp_path: Path, what: str) -> None:
    first = ARC.resolve(tmp_path / "out", fs=FS)
    account = json.loads(first.manifest_path.read_text())
    account["tensors"][0]["findings"] = NONSENSE[what]
    first.manifest_path.write_text(json.dumps(account))
    result = ARC.resolve(tmp_path / "out", fs=FS, earlier=tmp_path / "out")

    assert result.reused_tensors == 0
    assert result.decisions == first.decisions


OTHER_ACCOUNTS = {
    "release": lambda account: account["numerics"].update(release="0.0.0"),
    "schema": lambda account: account.update(schema="provenance/2"),
    "no tensors": lambda account: account.pop("tensors"),
    "a number of tensors": lambda account: account.update(tensors=5),
    "no digest": lambda account: account["tensors"][0].update(blob="zz"),
    "no key": lambda account: account["tensors"][0].update(key=[1]),
    "no name": lambda account: account["tensors"][0].pop("name"),
    "nothing": lambda account: account.clear(),
}


@pytest.mark.parametrize("what", OTHER_ACCOUNTS)
def test_an_account_of_another_kind_offers_nothing(tmp_path: Path, what: str) -> None:
    first = MEAN.resolve(tmp_path / "out", fs=FS)
    account = json.loads(first.manifest_path.read_text())
    OTHER_ACCOUNTS[what](account)
    first.manifest_path.write_text(json.dumps(account))

    assert read_earlier(FS, tmp_path / "out") == {}


OTHER_RESULTS: dict[str, Callable[[dict], object]] = {
    "another release": lambda account: account["numerics"].update(release="0.0.1"),
    "another schema": lambda account: account.update(schema="resolve/0"),
    "another key": lambda account: account.update(resolve_key="00" * 32),
    "another version of the strategy": lambda account: account["effective_strategy"].update(version=99),
    "other shards": lambda account: account["file"].update(shard_bytes=64),
    "another size": lambda account: account["file"].update(nbytes=1),
}


@pytest.mark.parametrize("what", OTHER_RESULTS)
def test_an_output_that_may_be_of_another_merge_is_not_the_result(tmp_path: Path, what: str) -> None:
    def found():
        nobody = {"progress": lambda *_: None, "cancelled": lambda: False}
        return find_finished(MEAN.job(), tmp_path / "out", fs=FS, **nobody)

    first = MEAN.resolve(tmp_path / "out", fs=FS)
    finished = found()
    account = json.loads(first.manifest_path.read_text())
    OTHER_RESULTS[what](account)
    first.manifest_path.write_text(json.dumps(account))

    assert finished is not None
    assert finished.output_digest == first.output_digest
    assert found() is None


def test_nothing_is_taken_from_what_is_not_there_or_no_account(tmp_path: Path) -> None:
    (tmp_path / "other.provenance.json").write_text("[" * 100_000)
    (tmp_path / "text.provenance.json").write_bytes(b"\xff")

    assert [read_earlier(FS, tmp_path / name) for name in ("absent", "other", "text")] == [{}, {}, {}]


def test_a_damaged_input_is_not_taken_for_a_damaged_output(tmp_path: Path) -> None:
    MEAN.resolve(tmp_path / "out", fs=FS)
    job = after(MEAN).job()
    wrong = dict(job.inputs[0].tensors)
    wrong["a.weight"] = replace(wrong["a.weight"], data=bytes(wrong["a.weight"].nbytes))
    broken: ModelInput = replace(job.inputs[0], tensors=wrong)
    job = replace(job, inputs=(broken, *job.inputs[1:]), earlier=read_earlier(FS, tmp_path / "out"))
    before = bytes_of(MEAN.resolve(tmp_path / "same", fs=FS))

    with pytest.raises(CorruptError, match=r"a\.weight"):
        run_job(job, tmp_path / "out", fs=FS)
    assert {"": (tmp_path / "out").read_bytes()} == before


def test_giving_up_leaves_the_output_that_was_to_be_replaced(tmp_path: Path) -> None:
    first = MEAN.resolve(tmp_path / "out", fs=FS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    steps: list[str] = []

    with pytest.raises(ResolveCancelledError):
        after(MEAN).resolve(
            tmp_path / "out", fs=FS, earlier=tmp_path / "out",
            progress=lambda _done, _all, step: steps.append(step), cancelled=lambda: bool(steps),
        )  # fmt: skip
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert first.output_path == tmp_path / "out"


def test_bytes_that_nobody_has_named_have_no_key(tmp_path: Path) -> None:
    job = MEAN.job()
    nameless = {
        name: replace(source, blob=b"") if name in FLOATS else source
        for name, source in job.inputs[0].tensors.items()
    }
    inputs = (replace(job.inputs[0], tensors=nameless), job.inputs[1])
    result = run_job(replace(job, inputs=inputs), tmp_path / "out")

    assert not any("key" in each for each in json.loads(result.manifest_path.read_text())["tensors"])


def test_a_node_remembers_what_it_wrote_and_believes_no_other_account(tmp_path: Path) -> None:
    results = []
    for number in range(RESULTS_MAX + 2):
        group = Group("weight_average", (model(number), model(number + 1)))
        results.append(group.resolve(tmp_path / f"out{number}", fs=FS))
        remember(tmp_path, group.job(), results[-1], fs=FS)
    known = recall(tmp_path, MEAN.job(), fs=FS)
    results[-1].manifest_path.write_text(results[-1].manifest_path.read_text() + " ")
    results[-2].output_path.unlink()
    fewer = recall(tmp_path, MEAN.job(), fs=FS)

    listed = json.loads((tmp_path / "reports" / "results.json").read_text())["results"]
    assert [each["path"] for each in listed] == [str(each.output_path) for each in results[:1:-1]]
    paths = [{Path(kept.source.path).name for kept in found.values()} for found in (known, fewer)]
    assert paths[0] - paths[1] == {"out16", "out17"}
    assert len(paths[1]) == RESULTS_MAX - 2
    remember(tmp_path, MEAN.job(), results[0], fs=FS)
    again = json.loads((tmp_path / "reports" / "results.json").read_text())["results"]
    assert [each["path"] for each in again][:2] == [str(results[n].output_path) for n in (0, 17)]
    assert str(results[-2].output_path) not in {each["path"] for each in again}


LISTS = {
    "empty": "",
    "cut": "{",
    "an array": "[]",
    "other entries": '{"schema": "results/1", "results": [3, {}, {"path": 4}]}',
    "another schema": '{"schema": "results/2"}',
}


@pytest.mark.parametrize("what", LISTS)
def test_a_list_that_cannot_be_read_is_begun_anew(tmp_path: Path, what: str) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "results.json").write_text(LISTS[what])

    assert recall(tmp_path, MEAN.job(), fs=FS) == {}
    remember(tmp_path, MEAN.job(), MEAN.resolve(tmp_path / "out", fs=FS), fs=FS)
    assert len(recall(tmp_path, MEAN.job(), fs=FS)) == len(FLOATS)


def test_a_remembered_output_without_the_digest_of_its_account_is_not_believed(tmp_path: Path) -> None:
    remember(tmp_path, MEAN.job(), MEAN.resolve(tmp_path / "out", fs=FS), fs=FS)
    place = tmp_path / "reports" / "results.json"
    listed = json.loads(place.read_text())
    for digest in ("", "00", None, 5):
        listed["results"][0]["account_sha256"] = digest
        place.write_text(json.dumps(listed))
        assert recall(tmp_path, MEAN.job(), fs=FS) == {}
