"""What is answered: probes, metrics, the documents of ``--json``, the files of the dashboard."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import crdt_merge_node.cli
import crdt_merge_node.http
import pytest
from crdt_merge_node.documents import document
from crdt_merge_node.http import history, pages
from support.http import Served, serving
from support.whole_nodes import Site, save_model

pytestmark = pytest.mark.asyncio
VENDOR = Path(crdt_merge_node.http.__file__).parent / "static" / "vendor"


async def _with_group(served: Served, tmp_path: Path) -> None:
    await served.node.create_group("g", save_model(tmp_path / "like", 1.0))
    for slot, value in (("one", 1.0), ("two", 3.0)):
        await served.node.add("g", save_model(tmp_path / slot, value), slot=slot)


async def test_a_node_that_is_alone_on_purpose_is_alive_and_ready(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        health, ready = await served.get("/healthz"), await served.get("/readyz")

    assert (health.status, ready.status) == (200, 200)
    assert health.json()["schema"] == "healthz/1"
    assert ready.json() == {"schema": "readyz/1", "is_ready": True, "reasons": []}


async def test_a_node_that_lost_its_peers_is_alive_and_not_ready(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.nodes(1) as (first,):
        async with site.running(site.make(), first.address) as second:
            await first.connected(second)
            async with serving(tmp_path, node=first) as served:
                before = await served.get("/readyz")
        await first.until(lambda: not first.services.driver.connections)
        async with serving(tmp_path, node=first) as served:
            health, after = await served.get("/healthz"), await served.get("/readyz")

    assert (before.status, health.status, after.status) == (200, 200, 503)
    assert "no peer is connected; 1 known" in after.json()["reasons"][0]


async def test_a_node_whose_store_failed_is_not_ready(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.services.store.health.fail("writing ops.db", OSError(5, "Input/output error"))
        ready = await served.get("/readyz")
        served.services.store.health.failure = None  # It closes in peace.

    assert ready.status == 503
    assert "the store is not writable: writing ops.db failed" in ready.json()["reasons"][0]


async def test_documents_are_those_of_the_command_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await _with_group(served, tmp_path)
        api = served.node.api
        expected = {
            "/api/peers.json": document("peer-list/1", peers=await api.peer_list()),
            "/api/groups.json": document("group-list/1", groups=await api.group_list()),
            "/api/group.json?group=g": document("group-show/1", await api.group_show("g")),
            "/api/policy.json?group=g": document("policy-show/1", policy=await api.policy_show("g")),
            "/api/contributions.json?group=g": document(
                "contribution-list/1", contributions=await api.contribution_list("g")
            ),
        }
        answers = {path: await served.get(path) for path in expected}
        status, why = await served.get("/api/status.json"), await served.get("/api/why.json?group=g")
        version = await served.get("/api/version.json")

    assert {path: answer.json() for path, answer in answers.items()} == expected
    assert {answer.headers["content-type"] for answer in answers.values()} == {"application/json"}
    assert status.json()["schema"] == "status/1"
    assert status.json()["dashboard"] == served.url
    assert [group["name"] for group in why.json()["groups"]] == ["g"]
    assert version.json()["daemon"]["node"] == served.node.id.hex()


async def test_every_document_and_every_field_of_it_is_described(tmp_path: Path) -> None:
    described = (Path(crdt_merge_node.cli.__file__).parent / "JSON.md").read_text()
    async with serving(tmp_path) as served:
        await _with_group(served, tmp_path)
        await served.node.resolve("g", tmp_path / "out")
        names = ("status", "why", "peers", "groups", "history", "version", "group", "policy", "contributions")
        paths = [f"/api/{name}.json?group=g" for name in (*names, "layers", "roots")]
        found = [(await served.get(path)).json() for path in (*paths, "/healthz", "/readyz")]

    assert len({each["schema"] for each in found}) == len(found)
    for each in found:
        assert f"`{each['schema']}`" in described
        assert [name for name in each if name != "schema" and f"`{name}`" not in described] == []
    history = next(each for each in found if each["schema"] == "history/1")
    assert [name for name in history["samples"][-1] if f"`{name}`" not in described] == []


async def test_what_is_not_there_is_an_error_of_the_same_shape(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        absent = await served.get("/api/group.json?group=nope")
        unnamed = await served.get("/api/group.json")
        nowhere = await served.get("/api/nothing.json")

    assert (absent.status, absent.json()["code"]) == (404, "E1702")
    assert (unnamed.status, unnamed.json()["code"]) == (400, "E1704")
    assert (nowhere.status, nowhere.json()["code"]) == (404, "E1702")


async def test_a_bug_is_logged_and_answered_without_its_details(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_services: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("crdt_merge_node.http.health.health", fail)
    async with serving(tmp_path) as served:
        answer = await served.get("/healthz")

    assert answer.status == 500
    assert b"secret" not in answer.body


async def test_metrics_are_in_the_format_of_prometheus(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        answer = await served.get("/metrics")

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert b"\ncrdt_merge_" in answer.body


async def test_roots_say_who_holds_the_same_set(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (first, second):
        await first.create_group("g", save_model(tmp_path / "like", 1.0))
        await first.add("g", save_model(tmp_path / "one", 1.0))
        await second.until_group("g", lambda info: info.used == 1)
        await first.equal("g", second)
        async with serving(tmp_path, node=first) as served:
            found = (await served.get("/api/roots.json?group=g")).json()

    assert found["schema"] == "group-roots/1"
    assert found["root"] == first.root("g").hex()
    (peer,) = found["peers"]
    assert (peer["name"], peer["root"], peer["is_equal"], peer["operations"]) == (
        "n1",
        found["root"],
        True,
        1,
    )


async def test_the_last_resolve_is_kept_with_its_layers(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        await _with_group(served, tmp_path)
        before = await served.get("/api/layers.json?group=g")
        report = await served.node.resolve("g", tmp_path / "out")
        after = (await served.get("/api/layers.json?group=g")).json()

    assert before.status == 404
    assert "resolve g" in before.json()["hint"]
    assert after["schema"] == "kept-resolve/1"
    assert after["resolve"]["output_digest"] == report.output_digest
    assert after["layers"]["schema"] == "layers/1"
    assert len(after["layers"]["inputs"]) == 2


async def test_layers_of_large_models_are_measured_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crdt_merge_node.report.kept.CHEAP_BYTES_MAX", 10)
    async with serving(tmp_path) as served:
        await _with_group(served, tmp_path)
        await served.node.resolve("g", tmp_path / "out")
        found = (await served.get("/api/layers.json?group=g")).json()

    assert found["layers"] is None
    assert found["resolve"]["group_name"] == "g"


async def test_history_is_bounded_and_ends_with_this_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "INTERVAL_S", 0.0)
    async with serving(tmp_path) as served:
        for _ in range(2 * history.SAMPLES_MAX):
            await asyncio.sleep(0)
        await _with_group(served, tmp_path)
        found = (await served.get("/api/history.json")).json()

    assert found["schema"] == "history/1"
    assert len(found["samples"]) == history.SAMPLES_MAX + 1
    assert found["samples"][-1]["operations"] == 2


async def test_every_file_of_the_page_is_served_and_asked_for_only_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        index = await served.get("/")
        wanted = re.findall(rb'(?:href|src)="/([^"]+)"', index.body)
        answers = {name: await served.get(f"/{name.decode()}") for name in wanted}
        again = await served.get("/app.js", if_none_match=answers[b"app.js"].headers["etag"])

    assert set(wanted) >= {b"app.js", b"style.css", b"theme.js", b"vendor/uPlot.css"}
    assert {answer.status for answer in answers.values()} == {200}
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/%2e%2e/server.py",
        "/vendor/../../server.py",
        "/vendor/%2e%2e/%2e%2e/server.py",
        "//etc/passwd",
        "/vendor",
        "/vendor/",
        "/vendor/README.md",
        "/app.js%00.css",
        "http://evil.example/app.js",
    ],
)
async def test_nothing_but_the_files_of_the_page_is_served(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path) as served:
        answer = await served.get(path)

    assert answer.status == 404


async def test_the_page_names_no_other_address(tmp_path: Path) -> None:
    """A node may be offline, and nobody else needs to know who looks at it."""
    for name in pages._names():
        if not name.startswith("vendor/") and name != "icon.svg":
            text = (pages.FOLDER / name).read_text()
            assert not re.search(r"https?://|//[a-z]+\.[a-z]+/", text), name
            assert "innerHTML" not in text, name


async def test_the_libraries_are_the_ones_that_the_list_names() -> None:
    listed = dict(re.findall(r"\| `([^`]+)` \|.*`([0-9a-f]{64})`", (VENDOR / "README.md").read_text()))
    present = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.suffix in (".mjs", ".css")
    }

    assert present == listed


async def test_a_busy_port_is_an_alarm_and_no_failed_start(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, serving(tmp_path, node=served.node, port=served.port) as second:
        (alarm,) = second.services.alarms.standing()

        assert second.services.alarms.is_healthy
        assert alarm.code == "http.unavailable"
        assert f"127.0.0.1:{served.port}" in alarm.message
        assert "http.port" in alarm.hint


async def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"retry: 2000")
        served.node.services.events.close()
        await served.server.close()

        assert not served.server._state.connections
        assert not served.server._state.tasks
        writer.close()
