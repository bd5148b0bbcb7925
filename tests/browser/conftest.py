"""Three daemons and a browser. Without Chromium, or something to drive it, the tests say so and skip.

    apt-get install chromium && pip install -e '.[browser]'

Screenshots go to a directory that the summary names; ``CRDT_MERGE_TEST_SCREENSHOTS`` chooses it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from crdt_merge_node.local_cluster import LocalCluster, Member
from safetensors.numpy import save_file
from support.daemons import Harness, cli

T = TypeVar("T")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = pytest.StashKey[Path]()
VIEWS = {"overview": "#/", "peers": "#/peers", "groups": "#/groups", "events": "#/events"}


class Cluster:
    """Daemons that live on a loop of another thread: the driver of the browser has the one of this."""

    def __init__(self, worker: ThreadPoolExecutor, harness: Harness) -> None:
        self._worker = worker
        self._harness = harness
        self.members = harness.members
        self.files = harness.files

    @property
    def first(self) -> Member:
        return self.members[0]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._worker.submit(self._harness.run, work).result()

    def until_agreed(self, group: str, *, used: int) -> None:
        self._worker.submit(self._harness.until_agreed, group, used=used).result()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three daemons with a group of three contributions, resolved on the first, and an empty group."""
    with tempfile.TemporaryDirectory(prefix="cmn-") as directory, ThreadPoolExecutor(1) as worker:
        runner = worker.submit(asyncio.Runner).result()
        local = LocalCluster(3, directory=Path(directory), has_http=True)
        try:
            worker.submit(runner.run, local.__aenter__()).result()
            worker.submit(runner.run, local.connected()).result()
            found = Cluster(worker, Harness(runner, local))
            _fill(found)
            yield found
        finally:
            worker.submit(runner.run, local.close()).result()
            worker.submit(runner.close).result()


def _fill(cluster: Cluster) -> None:
    base = _model(cluster.files / "base.safetensors", 9)
    first = cluster.first
    cli(first, "group", "create", "digits", "--strategy", "ties", "--base", str(base))
    cli(first, "group", "create", "empty", "--like", str(base))
    for number, member in enumerate(cluster.members):
        cluster.run(LocalCluster.until(lambda m=member: _knows(m, "digits"), timeout_s=30, what="the group"))
        model = _model(cluster.files / f"{member.name}.safetensors", number, like=9)
        cli(member, "contribution", "add", "digits", str(model), "--weight", str(number + 1))
    cluster.until_agreed("digits", used=3)
    for member in cluster.members:
        cluster.run(LocalCluster.until(lambda m=member: _converged(m), timeout_s=30, what="all is converged"))
    report = cluster.files / "layers.json"
    output = cluster.files / "merged.safetensors"
    cli(first, "resolve", "digits", "-o", str(output), "--report", str(report))


async def _converged(member: Member) -> bool:
    return all(info.is_converged and info.live_peers == 2 for info in await member.client.group_list())


async def _knows(member: Member, group: str) -> bool:
    return any(info.name == group for info in await member.client.group_list())


def _model(path: Path, seed: int, *, like: int | None = None) -> Path:
    """Write a model of three layers; one that resembles another differs from it by a tenth."""
    rng = np.random.default_rng(seed)
    shapes = {"attention.q.weight": (24, 24), "mlp.up.weight": (48, 24), "norm.weight": (24,)}
    names = {f"layers.{n}.{name}": shape for n in range(3) for name, shape in shapes.items()}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in names.items()}
    if like is not None:
        base = np.random.default_rng(like)
        for name, shape in names.items():
            tensors[name] = base.standard_normal(shape).astype(np.float32) + np.float32(0.1) * tensors[name]
    save_file(tensors, path)
    return path


@pytest.fixture(scope="session")
def shots(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    chosen = os.environ.get("CRDT_MERGE_TEST_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    request.config.stash[SHOTS] = folder
    return folder


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say where the screenshots are."""
    if SHOTS in config.stash:
        terminalreporter.write_line(f"screenshots of the dashboard: {config.stash[SHOTS]}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed here")
    reason = "playwright is not installed here: pip install -e '.[browser]'"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    with api.sync_playwright() as driver:
        # Root has no other choice, and what is shown here is ours alone.
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """A page, and what went wrong in it."""

    def __init__(self, page: Any, url: str, shots: Path) -> None:
        self.page = page
        self.url = url
        self._shots = shots
        self.problems: list[str] = []
        self.is_offline_expected = False
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", self._heard)
        page.on("request", self._asked)
        page.set_default_timeout(15_000)

    def _heard(self, message: Any) -> None:
        is_about_the_net = "Failed to load resource" in message.text or "net::ERR" in message.text
        if message.type in ("error", "warning") and not (self.is_offline_expected and is_about_the_net):
            self.problems.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.problems.append(f"asked another address: {request.url}")

    def open(self, view: str = "overview") -> None:
        """Open a view and wait until it shows something of the node."""
        self.page.goto(self.url + VIEWS.get(view, view))
        self.page.locator("main h1").wait_for()

    def text(self, selector: str = "main") -> str:
        """Return what is to be read, in one line."""
        return " ".join(self.page.locator(selector).inner_text().split())

    def shot(self, name: str) -> None:
        """Keep a picture of the whole page."""
        self.page.screenshot(path=self._shots / f"{name}.png", full_page=True)


@pytest.fixture
def open_page(browser: Any, cluster: Cluster, shots: Path) -> Iterator[Any]:
    """Make pages of the first node; each must end without an error, a warning or a question elsewhere."""
    contexts, watched = [], []

    def make(**options: Any) -> Watched:
        settings = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | options
        context = browser.new_context(**settings)
        contexts.append(context)
        watched.append(Watched(context.new_page(), cluster.first.dashboard, shots))
        return watched[-1]

    yield make
    for context in contexts:
        context.close()
    assert [problem for each in watched for problem in each.problems] == []
