"""Reports say everything, in text and in one HTML file that asks nobody for anything."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from crdt_merge_simulations.report import Story, render_html, render_text
from crdt_merge_simulations.report.html import agreement_cells, thinned
from crdt_merge_simulations.report.layout import positions
from crdt_merge_simulations.report.svg import histogram, nice, ticks
from crdt_merge_simulations.report.text import symbol_of, timeline
from support.stories import make_plan, make_result

COMMAND = "crdt-merge-sim run handmade --seed 7"


def _story(**violations: str) -> Story:
    plan = make_plan()
    return Story(result=make_result(plan, violations=violations), plan=plan, command=COMMAND)


# --- text -------------------------------------------------------------------------------------------------


def test_the_text_has_legend_events_figures_verdicts_and_replay() -> None:
    text = render_text(_story(I4="n1 and n2 differ"))

    assert "legend" in text.splitlines()[0]
    assert "    0.100  + n0 adds 00ff to s" in text
    assert "    1.000  ! n1 is killed" in text
    assert "FAILED  handmade, seed 7: 6 nodes" in text
    assert re.search(r"I1 +held +10 +Claim of I1", text)
    assert "✗ n1 and n2 differ" in text
    assert re.search(r"fork seen +never", text)
    assert text.endswith(COMMAND)


def test_a_long_story_is_cut_in_the_middle() -> None:
    lines = timeline([f"    {number}.000  n1 adds" for number in range(100)], lines_max=10).splitlines()

    assert len(lines) == 11
    assert "90 events more" in lines[5]


def test_names_from_elsewhere_cannot_move_the_cursor() -> None:
    assert "\x1b" not in timeline(["    0.100  n0 adds \x1b[2J"])


@pytest.mark.parametrize(
    ("event", "symbol"),
    [
        ("n3 adds 00aa to s1", "+"),
        ("n3 removes 00aa", "-"),
        ("n3 is killed", "!"),
        ("n3 starts", "^"),
        ("split n1 | n2", "!"),
        ("heal", "^"),
        ("n1 MISMATCH", "✗"),
        ("something else entirely", "·"),
    ],
)
def test_events_are_told_by_their_words(event: str, symbol: str) -> None:
    assert symbol_of(event) == symbol


# --- HTML -------------------------------------------------------------------------------------------------


class _References(HTMLParser):
    """Collects whatever a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}={value}" for name, value in attrs if name in {"src", "href", "data"}]


def test_the_page_loads_nothing_from_anywhere() -> None:
    page = render_html(_story())
    parser = _References()
    parser.feed(page)

    assert parser.found == []
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_every_picture_of_the_page_is_well_formed() -> None:
    pictures = re.findall(r"<svg.*?</svg>", render_html(_story()), re.DOTALL)

    assert len(pictures) == 8
    for picture in pictures:
        ET.fromstring(picture)


def test_the_page_has_a_card_for_each_thing_to_look_at() -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", render_html(_story()))

    assert titles == [
        "Invariants",
        "Convergence over time",
        "Growth",
        "Delivery",
        "Who agrees with whom",
        "Topology",
        "Bytes sent by node",
        "Hops and redundancy",
        "Exercised",
        "Faults",
        "What happened",
    ]


def test_convergence_is_drawn_as_roots_and_as_the_distance_of_weights_with_the_splits_behind_both() -> None:
    page = render_html(_story())
    card = page[page.index("Convergence over time") : page.index("<h2>Growth")]

    assert card.count("<svg") == 2
    assert "mean pairwise distance" in card


def test_a_level_without_tensors_says_that_it_knows_no_distance() -> None:
    story = _story()
    for sample in story.result.samples:
        sample.distance = None

    assert "this level has no tensors" in render_html(story)


def test_what_a_run_says_cannot_become_markup() -> None:
    story = _story(I1="<script>alert(1)</script>")
    story.result.log.append("    2.000  </pre><script>alert(2)</script>")
    story = dataclasses.replace(story, command="</script><script>alert(3)</script>")

    assert "alert" in (page := render_html(story))
    assert "<script>alert" not in page


def test_the_script_is_given_the_sides_and_the_nodes_that_are_down() -> None:
    page = render_html(_story())
    data = json.loads(re.search(r'id="story">(.*?)</script>', page, re.DOTALL)[1])

    assert data["command"] == COMMAND
    assert data["moments"][1] == {"time": 1.0, "distinct": 2, "sides": [0, 0, 0, 1, 1, 1], "off": [0]}


def test_a_result_with_nothing_in_it_still_makes_a_page() -> None:
    plan = make_plan(nodes=2, faults=0)
    bare = dataclasses.replace(
        make_result(plan), samples=[], links=[], hops={}, delivery_s=[], bytes_sent=[], log=[], checks={}
    )

    page = render_html(Story(result=bare))

    assert "nothing was sampled" in page
    assert "passed" in page


# --- pieces -----------------------------------------------------------------------------------------------


def test_the_heat_map_is_calm_where_most_agree() -> None:
    rows = agreement_cells(make_result(make_plan()).samples)

    assert [row[0][0] for row in rows] == ["calm"] * 6
    assert rows[0][1] == ("down", "down")
    assert rows[1][1][0].startswith("h")
    assert [row[1][0] for row in rows[2:]] == ["calm"] * 4


def test_thinning_keeps_the_first_and_the_last_moment() -> None:
    samples = make_result(make_plan()).samples * 400

    thin = thinned(samples, 50)

    assert len(thin) == 50
    assert thin[0] is samples[0]
    assert thin[-1] is samples[-1]


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_nodes_are_drawn_apart_and_inside(count: int) -> None:
    ring = [(node, (node + 1) % count) for node in range(count) if count > 2]
    places = positions(count, ring)

    assert places.shape == (count, 2)
    assert (places >= -1e-9).all()
    assert (places <= 1 + 1e-9).all()
    assert len({tuple(np.round(place, 4)) for place in places}) == count


def test_nodes_of_one_site_are_drawn_together() -> None:
    sites = [node % 4 for node in range(24)]
    places = positions(24, [], sites)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    is_together = np.equal.outer(sites, sites)

    assert apart[is_together].max() < apart[~is_together].max() / 2
    assert (places >= 0).all()
    assert (places <= 1).all()


def test_equal_topologies_are_drawn_equally() -> None:
    ring = [(node, (node + 1) % 20) for node in range(20)]

    assert (positions(20, ring) == positions(20, ring)).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0.2, 0.9), (0, 123456), (100, 0)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 4)

    assert 2 <= len(found) <= 6
    assert all(min(low, high) - 1e-9 <= value <= max(low, high) + 1e-9 for value in found)


@pytest.mark.parametrize("value", [0.003, 1, 3.2, 99, 101, 5e7])
def test_the_top_of_an_axis_is_above_but_not_far(value: float) -> None:
    assert value <= nice(value) <= 2 * value


def test_histograms_count_every_value_once() -> None:
    values = [0.01 * number for number in range(200)]

    assert sum(count for _, count in histogram(values)) == 200
    assert histogram([]) == []
