"""The compliance matrix: every strategy keeps every law through the state, and hardly one without it."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from crdt_merge_protocol.blobs import Schema
from crdt_merge_protocol.errors import ParameterError, ResolveError
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.artefact_checks import check_artefact, check_values
from crdt_merge_simulations.cli.app import root
from crdt_merge_simulations.laws import Entry, Matrix, matrix, replicas, run, size_of
from crdt_merge_simulations.laws.artefacts import synthetic
from crdt_merge_simulations.laws.cases import contributions_for, places, terms
from crdt_merge_simulations.laws.models import Models, gap, specs_of
from crdt_merge_simulations.laws.page import render_html
from crdt_merge_simulations.laws.telling import document, render_text

EVERY = pytest.mark.parametrize("name", registry.names())
NO_OPERATORS = {"safe_merge", "trimmed_mean", "krum", "multi_krum"}
"""They refuse two models."""


def all_of(*strategies, sizes=("4x4",), **options):
    *entries, whole = run(strategies, sizes, jobs=1, **options)
    assert all(isinstance(entry, Entry) for entry in entries)
    assert isinstance(whole, Matrix)
    return whole


@pytest.fixture(scope="module")
def small():
    return all_of()


@EVERY
def test_every_strategy_keeps_every_law_through_the_state(small, name):
    (entry,) = small.of(name)

    assert entry.status == "measured", entry.reason
    through = entry.through
    assert through.is_commutative
    assert through.is_associative
    assert through.is_idempotent
    assert through.is_converged
    assert through.replicas.is_bitwise
    assert through.replicas.relative == through.replicas.max_abs == 0
    assert through.contributions == contributions_for(registry.get(name))


def test_the_matrix_has_all_strategies_and_succeeds(small):
    assert small.strategies == registry.names()
    assert small.is_success
    assert small.counts()["state all laws"] == len(registry.names())
    assert small.counts(is_paper_only=True)["state all laws"] == 26


def test_without_the_state_replicas_stay_apart(small):
    """But for the sum of changes, and for two whose trimming does nothing to so few elements."""
    assert {entry.strategy for entry in small.entries if entry.undefined} == NO_OPERATORS
    agreeing = {entry.strategy for entry in small.entries if entry.kept("replicas")}
    assert agreeing == {"task_arithmetic", "emr_merging", "model_breadcrumbs", "breadcrumbs_ties"}
    assert small.counts()["raw all laws"] == 1


@pytest.mark.parametrize(
    ("name", "laws"),
    [
        ("weight_average", {"commutative", "idempotent"}),
        ("task_arithmetic", {"commutative", "associative", "replicas"}),
        ("emr_merging", {"commutative", "associative", "idempotent", "replicas"}),
        ("passthrough", {"associative", "idempotent"}),
        ("dare_ties", set()),
    ],
)
def test_raw_laws_are_those_of_the_formulas(small, name, laws):
    """A mean, a sum, the greater change, the first model, and masks that are drawn anew."""
    (entry,) = small.of(name)

    assert {
        law for law in ("commutative", "associative", "idempotent", "replicas") if entry.kept(law)
    } == laws


def test_the_gap_of_the_mean_is_that_of_its_formula(small):
    models = Models(size_of("4x4"), 1)
    a, b, c = (models[i]["weight"].astype(np.float64) for i in range(3))
    folds = [(a + b) / 4 + c / 2, (b + c) / 4 + a / 2, (c + a) / 4 + b / 2]
    norm = np.linalg.norm
    pairs = ((0, 1), (0, 2), (1, 2))
    wanted = max(norm(folds[i] - folds[j]) / max(norm(folds[i]), norm(folds[j])) for i, j in pairs)

    (entry,) = small.of("weight_average")

    assert entry.raw.replicas.relative == pytest.approx(wanted, rel=1e-5)


def test_only_what_depends_on_places_is_hidden_by_the_canonical_order(small):
    hidden = {entry.strategy for entry in small.entries if entry.raw is not None and entry.raw.is_hidden}

    random = {name for name in registry.names() if registry.get(name).is_random}
    assert hidden == random | {"passthrough"}


# --- it can fail ------------------------------------------------------------------------------------------


def test_an_order_of_arrival_that_shows_in_the_output_is_a_gap(monkeypatch):
    merge = replicas.merge_arrays

    def by_arrival(strategy, inputs, *others, digests, **options):
        return merge(strategy, inputs, *others, digests=places(len(inputs)), **options)

    monkeypatch.setattr(replicas, "merge_arrays", by_arrival)

    whole = all_of("weight_average", "dare")

    assert not whole.is_success
    assert all(entry.through.replicas.relative > 0.01 for entry in whole.entries)
    assert "the outputs of the replicas differ" in render_text(whole)


def test_a_join_that_drops_an_operation_breaks_laws(monkeypatch):
    def half(self, other):
        for signed in other.causal(other._operations.keys() - self._operations.keys())[:2]:
            self.apply(signed)

    monkeypatch.setattr(CRDTMergeState, "join", half)

    (entry,) = all_of("weight_average").entries

    assert not entry.is_success
    assert not entry.through.is_converged


def test_a_resolve_key_that_depends_on_the_replica_is_no_convergence(monkeypatch):
    numbers = iter(range(1000))
    monkeypatch.setattr(replicas, "resolve_key", lambda *_, **__: bytes([next(numbers)]))

    (entry,) = all_of("weight_average").entries

    assert not entry.through.is_commutative
    assert not entry.through.is_converged


def test_a_refused_merge_is_a_failure_and_says_why(monkeypatch):
    def refuse(*_, **__):
        raise ResolveError("Not today.")

    monkeypatch.setattr(replicas, "merge_arrays", refuse)

    whole = all_of("slerp")

    assert whole.entries[0].status == "failed"
    assert not whole.is_success
    assert "Not today." in render_text(whole)


# --- what it costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seconds_max", "why"),
    [("slerp", 0.0, "by the strategy's own estimate"), ("star", 1e-3, "for the first merge took")],
)
def test_what_would_take_too_long_is_skipped_with_an_estimate_and_no_value(name, seconds_max, why):
    whole = all_of(name, sizes=("8x8",), seconds_max=seconds_max)
    (entry,) = whole.entries

    assert entry.status == "skipped: cost"
    assert re.match(rf"about [\d,]+ s,? {why}", entry.reason)
    assert entry.estimate_s > seconds_max
    assert entry.raw is None
    assert entry.through is None
    assert not whole.is_success
    assert "skipped" in render_text(whole)


def test_skipped_at_one_size_and_kept_at_another_is_success(small):
    (kept,) = small.of("slerp")
    skipped = dataclasses.replace(
        kept, size="8x8", status="skipped: cost", raw=None, through=None, reason="about 9 s"
    )
    whole = Matrix(seed=1, sizes=("4x4", "8x8"), strategies=("slerp",), entries=(kept, skipped))

    assert whole.is_success
    assert whole.counts()["state all laws"] == 1


# --- what it is given -------------------------------------------------------------------------------------


@EVERY
def test_artefacts_are_valid_and_follow_the_models_and_not_their_places(name):
    strategy, models = registry.get(name), Models(size_of("6x5"), 3)
    count = contributions_for(strategy)
    known = [models[i] for i in range(count)]

    made = synthetic(strategy, known, places(count), terms(strategy, count).roles)
    again = synthetic(strategy, known[::-1], places(count)[::-1], ())

    for item in made:
        schema = Schema(specs_of(known[0]))
        assert check_artefact(item.type, item.header, specs_of(item.tensors), schema) == []
        for tensor, values in item.tensors.items():
            assert check_values(item.type, tensor, values.reshape(-1).astype(float)) is None
    others = {(item.type, item.header.get("subject")): item for item in again}
    for item in made:
        if item.type != "role":
            other = others[item.type, item.header.get("subject")]
            assert other.header == item.header
            assert {key: x.tobytes() for key, x in other.tensors.items()} == {
                key: x.tobytes() for key, x in item.tensors.items()
            }


def test_the_checkpoint_is_bert_tiny():
    assert size_of("checkpoint").numel == 4_385_920
    assert len(size_of("checkpoint").shapes) == 39


def test_gaps_tell_rounding_from_breaking_and_from_other_bits():
    one = {"w": np.array([1, 2, 3], np.float32)}

    assert gap(one, one).verdict == "exact"
    assert gap(one, {"w": np.nextafter(one["w"], np.float32(9))}).verdict == "rounding"
    assert gap(one, {"w": one["w"] + np.float32(0.1)}).verdict == "broken"
    zeros = gap({"w": np.zeros(1, np.float32)}, {"w": -np.zeros(1, np.float32)})
    assert (zeros.relative, zeros.is_bitwise, zeros.verdict) == (0.0, False, "rounding")


def test_processes_give_what_one_gives():
    def plain(whole):
        return [dataclasses.replace(entry, took_s=0.0) for entry in whole.entries]

    *_, two = run(["slerp", "dare"], ["4x4", "3x5"], jobs=2)

    assert plain(two) == plain(all_of("slerp", "dare", sizes=("4x4", "3x5")))


# --- what it says -----------------------------------------------------------------------------------------


class _Outside(HTMLParser):
    def __init__(self):
        super().__init__()
        self.loaded, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for key, value in attrs if key in ("src", "href")]


def test_the_page_is_one_file_with_every_strategy_in_table_and_chart(small):
    page = render_html(small, "crdt-merge-sim laws <")
    reader = _Outside()
    reader.feed(page)

    assert reader.loaded == []
    assert "url(" not in page
    assert "laws &lt;" in page
    for name in small.strategies:
        assert 'class="strategy" x="182.0"' in page
        assert f"<td>{name}<td" in page
        assert f"{name}, through the state, 4x4: relative L2 0, greatest difference 0" in page


def test_the_table_has_a_row_per_strategy_and_a_legend(small):
    text = render_text(small)

    assert re.search(r"dare_ties +x\* +x +x +1\.\d+ +(= +){4}0 ", text)
    assert re.search(r"krum +(n/a +){4}(= +){4}0 ", text)
    assert "hidden by the canonical order" in text
    assert f"equal bytes, {len(small.strategies)} of {len(small.strategies)}" in text
    assert text.endswith("PASSED")


def test_json_has_gaps_with_verdicts_and_no_number_that_json_has_not(small):
    told = json.loads(json.dumps(document(small, "x"), allow_nan=False))

    assert told["schema"] == "sim-laws/1"
    first = told["entries"][0]
    assert first["raw"]["associative"]["verdict"] == "broken"
    assert first["through"]["replicas"] == {"relative": 0.0, "max_abs": 0.0, "is_bitwise": True}


def test_the_command_writes_files_and_ends_with_the_verdict(tmp_path, monkeypatch):
    page, saved = tmp_path / "laws.html", tmp_path / "laws.json"
    arguments = ["laws", "--strategies", "slerp, mean", "--sizes", "4x4", "--jobs", "1"]

    done = CliRunner().invoke(root, [*arguments, "--json", "--html", str(page), "--save", str(saved)])

    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == json.loads(saved.read_text())
    assert told["strategies"] == ["slerp", "weight_average"]
    assert "weight_average" in page.read_text()
    monkeypatch.setattr(replicas.Through, "is_success", property(lambda _: False))
    assert CliRunner().invoke(root, arguments).exit_code == 7


@pytest.mark.parametrize("size", ["", "4", "0x4", "4x-1", "9000x4", "bert"])
def test_wrong_sizes_are_refused_by_name(size):
    done = CliRunner().invoke(root, ["laws", "--sizes", size])

    assert done.exit_code == 78
    assert f"There is no size {size!r}" in done.stderr


def test_unknown_strategies_are_refused():
    with pytest.raises(ParameterError, match="slerp"):
        next(iter(matrix.run(["slrp"], ["4x4"])))
