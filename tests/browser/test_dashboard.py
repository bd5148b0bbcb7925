"""The dashboard in a real browser, on real daemons: its words and numbers are those of the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from crdt_merge_node.cli import output
from support.daemons import ask, cli

from .conftest import VIEWS, Cluster

AGES = re.compile(r"\b\d+(\.\d+)? (ms|s|min|h|d)\b( \d+ (s|min|h)\b)?")
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>"\'>\u202e{{7*7}}'


def words(text: str) -> str:
    """Return a text in one line, without durations, which differ between two looks."""
    return " ".join(AGES.sub("AGE", text).split())


def test_the_overview_says_what_status_and_why_say(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open()
    watched.shot("overview-light")
    shown = words(watched.text())
    status, why = ask(cluster.first, "status"), cli(cluster.first, "why").stdout

    assert watched.page.locator("h1").inner_text() == "Healthy"
    assert watched.page.title() == "Overview · node-1 · crdt-merge-node"
    assert status["listen"] in shown
    assert f"{status['data_dir']}: {output.size(status['store_bytes'])}, " in shown
    assert f"{status['version']}, process {status['pid']}" in shown
    assert "peers 2 alive" in shown
    for line in filter(None, why.splitlines()):
        name, where = re.fullmatch(r"group (\S+) \(\w+\): converged, (.*)", line).groups()
        assert f"{name} ● converged {where}" in shown
    for group in status["groups"]:
        assert f"contributions {group['contributions']} missing - strategy {group['strategy']}" in shown
    assert "%" not in shown


def test_the_charts_say_their_numbers_in_words(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open()
    figures = watched.page.locator("figure.chart")
    figures.nth(3).wait_for()

    assert figures.count() == 4
    assert watched.page.locator("figure.chart canvas").count() == 4
    operations = sum(group["operations"] for group in ask(cluster.first, "status")["groups"])
    assert words(figures.nth(0).inner_text()) == f"Operations {operations}"
    assert words(figures.nth(2).inner_text()) == "Missing bytes 0 B"
    assert words(figures.nth(3).inner_text()) == "Connected peers 2"


def test_peers_are_the_table_of_peer_list(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open("peers")
    watched.page.locator(".graph canvas").first.wait_for()
    watched.shot("peers-light")
    rows = watched.page.locator(".rows tbody tr").all()
    shown = [words(row.inner_text().replace("●", "")) for row in rows]
    expected = [words(line) for line in cli(cluster.first, "peer", "list").stdout.splitlines()[2:]]

    assert shown == expected
    assert len(shown) == 2
    assert "2 alive." in watched.text()


def test_a_peer_is_what_peer_show_says(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open("peers")
    watched.page.locator(".rows tbody tr").first.focus()
    watched.page.keyboard.press("Enter")
    watched.page.get_by_role("heading", name="node-2").wait_for()
    watched.shot("peer-light")
    shown = words(watched.text())
    lines = [words(line) for line in cli(cluster.first, "peer", "show", "node-2").stdout.splitlines()]
    found = [
        line for line in lines if line.startswith(("id ", "addresses ", "view ", "version ", "connection "))
    ]

    assert len(found) == 5
    assert [line for line in found if line not in shown] == []
    exchanges = watched.page.get_by_role("region", name="Exchanges").locator("tbody tr").all()
    assert [words(row.inner_text()) for row in exchanges] == [
        line for line in lines if line.startswith(("digits ", "empty "))
    ]
    assert "peer.joined" in shown


def test_a_group_is_what_group_show_says(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open("groups")
    watched.shot("groups-light")
    overview = words(watched.text())
    watched.page.get_by_role("link", name="digits").click()
    watched.page.locator(".heat").wait_for()
    watched.shot("group-light")
    shown = words(watched.text())
    detail = ask(cluster.first, "group", "show", "digits")
    listed = cli(cluster.first, "contribution", "list", "digits").stdout.splitlines()
    policy = cli(cluster.first, "policy", "show", "digits").stdout

    info = detail["info"]
    assert f"digits {info['id'][:12]} ties 3 - {info['sync_root'][:12]} 2 of 2 peers" in overview
    assert words(listed[0]).removesuffix(".") in shown
    contributions = watched.page.get_by_role("region", name="Contributions").locator("tbody tr").all()
    assert [words(row.inner_text().replace("●", "")) for row in contributions] == [
        words(line) for line in listed[2:]
    ]
    facts = [words(line) for line in policy.splitlines() if line.startswith("  ")]
    assert facts
    assert [fact for fact in facts if fact not in shown] == []
    for key in ("sync_root", "used_root", "resolve_key"):
        assert info[key][:12] in shown
    roots = watched.page.get_by_role("region", name="Roots").locator("tbody tr").all()
    assert [words(row.inner_text()) for row in roots] == [
        f"this node {info['sync_root'][:12]} 3",
        f"node-2 {info['sync_root'][:12]} 3 ● equal connected",
        f"node-3 {info['sync_root'][:12]} 3 ● equal connected",
    ]


def test_the_heat_map_has_the_numbers_of_the_report(cluster: Cluster, open_page: Any) -> None:
    report = json.loads((cluster.files / "layers.json").read_text())
    watched = open_page()
    watched.open("groups")
    watched.page.get_by_role("link", name="digits").click()
    heat = watched.page.locator(".heat tbody tr")
    heat.first.wait_for()

    def row(number: int) -> str:
        return words(heat.nth(number).inner_text())

    assert heat.count() == len(report["tensors"]) + 1
    for number, tensor in enumerate(report["tensors"], start=1):
        shape = "\u00d7".join(map(str, tensor["shape"]))
        shares = " ".join(
            f"{value:.1%}".replace("%", " %") for value in (tensor["conflict"], *tensor["influences"])
        )
        assert row(number) == f"{tensor['name']} {shape} {shares} {tensor['merged_norm']:.4g}"
    watched.page.get_by_role("radio", name="Cosine").check()
    signed = " ".join(f"{value:+.3f}" for value in report["tensors"][0]["merged_cosines"])
    assert signed in row(1)


def test_events_arrive_while_one_looks(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open("events")
    log = watched.page.locator(".log > li")
    log.filter(has_text="node.ready").wait_for()
    peer = cluster.members[2]
    cli(cluster.first, "peer", "block", "node-3")
    log.filter(has_text="peer.blocked").wait_for()
    watched.shot("events-light")
    blocked = words(log.filter(has_text="peer.blocked").inner_text())
    watched.page.get_by_text("Pause", exact=True).click()
    cli(cluster.first, "peer", "unblock", "node-3")
    watched.page.get_by_text("waiting", exact=False).wait_for()
    paused = log.filter(has_text="peer.unblocked").count()
    watched.page.get_by_text("Go on", exact=True).click()
    log.filter(has_text="peer.unblocked").wait_for()
    watched.page.get_by_role("radio", name="error").check()
    log.filter(has_text="node.ready").wait_for(state="detached")

    assert blocked.endswith(f"info peer.blocked peer {peer.id[:12]}")
    assert paused == 0
    assert watched.page.locator(".log").get_attribute("aria-live") == "polite"


def test_everything_can_be_reached_by_keyboard(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open()
    page = watched.page

    def focused() -> str:
        return page.evaluate("document.activeElement.textContent.trim()")

    page.keyboard.press("Tab")
    assert focused() == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Shift+Tab")
    assert focused().startswith("Theme: ")
    page.keyboard.press("Space")
    assert focused() == "Theme: light"
    for expected in ("Events", "Groups", "Peers"):
        page.keyboard.press("Shift+Tab")
        assert focused() == expected
    page.keyboard.press("Enter")
    page.locator("h1", has_text="Peers").wait_for()
    page.wait_for_function(
        "document.activeElement.textContent === 'Peers' && document.activeElement.tagName === 'H1'"
    )
    assert page.locator("a[aria-current=page]").inner_text() == "Peers"

    page.keyboard.press("Tab")  # The table, which scrolls.
    page.keyboard.press("Tab")
    rows = page.locator(".rows tbody tr")
    assert page.evaluate("document.activeElement.tagName") == "TR"
    assert rows.nth(0).get_attribute("aria-current") == "true"
    page.keyboard.press("ArrowDown")
    assert rows.nth(1).get_attribute("aria-current") == "true"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    assert rows.nth(0).get_attribute("aria-current") == "true"
    watched.shot("peers-chosen-light")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_focus_stays_where_it_is_while_numbers_change(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open("groups")
    page = watched.page
    page.get_by_role("link", name="empty").focus()
    page.evaluate("window.focusedNow = document.activeElement")
    with page.expect_response("**/api/status.json"):
        pass
    with page.expect_response("**/api/status.json"):
        pass

    assert page.evaluate("document.activeElement === window.focusedNow && document.activeElement.isConnected")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_by_day_and_by_night(cluster: Cluster, open_page: Any, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: text has a contrast of 4.5 to 1 with what is behind it, in every view."""
    watched = open_page(color_scheme=scheme)
    dim: dict[str, Any] = {}
    for view in (*VIEWS, "#/groups/digits"):
        watched.open(view)
        if view == "events":
            watched.page.locator(".log > li").first.wait_for()
        if view.startswith("#"):
            watched.page.locator(".heat").wait_for()
        watched.shot(f"{view.replace('#/groups/', 'group-')}-{scheme}")
        dim[view] = watched.page.evaluate(CONTRAST)

    assert dim == {view: [] for view in dim}


def test_the_theme_is_chosen_by_hand_and_remembered(cluster: Cluster, open_page: Any) -> None:
    watched = open_page(color_scheme="light")
    watched.open()
    background = "getComputedStyle(document.body).backgroundColor"
    light = watched.page.evaluate(background)
    button = watched.page.locator("#theme")
    button.click()
    button.click()
    assert button.inner_text() == "Theme: dark"
    dark = watched.page.evaluate(background)
    watched.page.reload()
    watched.page.locator("main h1").wait_for()

    assert dark != light
    assert watched.page.evaluate(background) == dark
    assert button.inner_text() == "Theme: dark"


@pytest.mark.parametrize("width", [340, 760])
def test_no_view_is_wider_than_a_narrow_screen(cluster: Cluster, open_page: Any, width: int) -> None:
    watched = open_page(viewport={"width": width, "height": 740})
    for view in (*VIEWS, "#/groups/digits"):
        watched.open(view)
        if view.startswith("#"):
            watched.page.locator(".heat").wait_for()
        watched.shot(f"{view.replace('#/groups/', 'group-')}-{width}")

        assert watched.page.evaluate("document.scrollingElement.scrollWidth") <= width, view


def _poison(value: Any) -> Any:
    """Put the hostile text into everything that another machine could have chosen, and into the rest, too."""
    if isinstance(value, dict):
        kept = ("schema", "state", "severity", "level", "id", "group", "node", "digest")
        return {key: item if key in kept else _poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_what_a_peer_calls_itself_is_never_run(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    page = watched.page

    def poison(route: Any) -> None:
        answer = route.fetch()
        found = _poison(answer.json())
        if found["schema"] == "status/1":
            found["alarms"] = [
                {"severity": "error", "code": HOSTILE, "message": HOSTILE, "hint": HOSTILE, "since": 1}
            ]
        if found["schema"] == "why/1":
            reason = {
                "subject": HOSTILE,
                "subject_name": HOSTILE,
                "lacks": HOSTILE,
                "missing": [HOSTILE],
                "since": 1,
            }
            for group in found["groups"]:
                group["reasons"] = [
                    reason | {"waiting": HOSTILE, "remedy": f"{HOSTILE} crdt-merge-node {HOSTILE}"}
                ]
                group["is_converged"] = False
        route.fulfill(response=answer, json=found)

    event = {
        "seq": 9,
        "time": 1.0,
        "level": "info",
        "event": HOSTILE,
        "fields": {HOSTILE: HOSTILE},
        "numbers": {},
    }
    page.route("**/api/*.json*", poison)
    page.route(
        "**/api/events?*",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"id: 9\ndata: {json.dumps(event)}\n\n"
        ),
    )
    for view in (*VIEWS, "#/groups/digits"):
        watched.open(view)
        page.get_by_text("onerror", exact=False).first.wait_for()
        if view == "events":
            page.locator(".log > li").first.wait_for()
        watched.shot(f"hostile-{view.replace('#/groups/', 'group-')}")

        assert page.evaluate("window.pwned") is None, view
        assert page.locator("main img, main script, nav img, footer img").count() == 0, view
        assert "onerror=" in watched.text("body")
        assert "\u202e" not in page.content()


def test_a_daemon_that_went_away_is_told_and_found_again(cluster: Cluster, open_page: Any) -> None:
    follower, watched = open_page(), open_page()
    follower.open("events")
    ready = follower.page.locator(".log > li", has_text="node.ready")
    ready.filter(has_text="groups 0").wait_for()
    watched.open()
    watched.is_offline_expected = follower.is_offline_expected = True
    gone = watched.page.locator("#gone")
    cluster.run(cluster.first.stop())
    gone.wait_for(state="visible")
    watched.shot("gone-light")
    said, shown = gone.inner_text(), watched.page.locator("h1").inner_text()
    cluster.run(cluster.first.start())
    gone.wait_for(state="hidden", timeout=30_000)
    ready.filter(has_text="groups 0").wait_for(state="detached", timeout=30_000)
    ready.filter(has_text="groups 2").wait_for()
    follower.page.locator("#line", has_text="live").wait_for()

    assert re.fullmatch(
        r"The node has not answered since [\d:]+; what is shown is from then\. Asking again every 2 s\.", said
    )
    assert shown == "Healthy"
    assert "is-gone" not in (watched.page.locator("body").get_attribute("class") or "")


def test_an_unhealthy_node_says_so_with_its_hints(cluster: Cluster, open_page: Any) -> None:
    """A daemon killed beside it: what it lacks and the remedy stand there in the words of `why`."""
    watched = open_page()
    third = cluster.members[2]
    cluster.run(third.kill())
    try:
        watched.open()
        watched.page.get_by_text("start it, or repair the network between the two").first.wait_for()
        watched.shot("overview-missing-light")
        shown = words(watched.text())
        reasons = [line for line in cli(cluster.first, "why").stdout.splitlines() if "lacks" in line]
        watched.open("peers")
        watched.page.locator(".rows .bad").wait_for()
        watched.shot("peers-failed-light")
    finally:
        cluster.run(third.start())

    assert reasons
    assert all(re.sub(r"^\s*1\. ", "", words(reason)) in shown for reason in reasons)
    assert "2 of 2 groups not converged: digits, empty." in shown


def test_numbers_are_written_as_the_command_line_writes_them(cluster: Cluster, open_page: Any) -> None:
    watched = open_page()
    watched.open()
    sizes = [0, 1, 1023, 1024, 1536, 1588, 10_000, 123_456_789, 5 << 40, 1 << 60, (1 << 20) - 1, 1126.4]
    times = [0, 0.04, 0.05, 0.25, 0.35, 0.75, 9.94, 9.95, 10, 10.5, 11.5, 59.4, 60, 61, 3599, 3600, 7260]
    times += [172_799, 172_800]
    ages = [0, 0.5, 1.5, 2.5, 9.4, 9.5, 10, 59, 60, 3601, 1e6]
    reals = [0.0, 1.0, 284.13, 0.5, 12346.0, 1234567.0, 0.00001234, -3.25, 1e-300]
    found = watched.page.evaluate(
        """async ([sizes, times, ages, reals]) => {
          const f = await import("/format.js");
          const shownAges = ages.map((each) => f.age(1e9, 1e9 - each));
          return [sizes.map(f.size), times.map(f.duration), shownAges, f.age(5, null), reals.map(f.general),
            f.clean("a\\x1b[2J\\u202eb\\u2066\\x7f\\n")];
        }""",
        [sizes, times, ages, reals],
    )

    assert found[0] == [output.size(each) for each in sizes]
    assert found[1] == [output.duration(each) for each in times]
    assert found[2] == [output.age(1e9, 1e9 - each) for each in ages]
    assert found[3] == output.age(5, None)
    assert found[4] == [f"{each:.4g}" for each in reals]
    assert found[5] == output.clean("a\x1b[2J\u202eb\u2066\x7f\n")


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(rgba(getComputedStyle(each).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest(".unseen, .skip, noscript")) continue;
    const ground = behind(element);
    const ink = over(rgba(getComputedStyle(element).color), ground);
    const [low, high] = [light(ink), light(ground)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push([element.className, element.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return found;
}"""
