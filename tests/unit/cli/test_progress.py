"""Rate and remaining time, and how often a line is printed; time is an argument."""

from __future__ import annotations

import io
import json

import pytest
from crdt_merge_node.cli.progress import Bar, JsonLines, Lines, Meter
from crdt_merge_node.control.model import Progress
from rich.console import Console

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _progress(done: int, total: int = 10 * MIB, step: str = "copying") -> Progress:
    return Progress(step=step, done_bytes=done, total_bytes=total)


def test_the_rate_is_that_of_the_present_step() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.measure(_progress(0, step="hashing"))
    clock.now += 100.0
    meter.measure(_progress(4 * MIB))
    clock.now += 2.0

    rate, left = meter.measure(_progress(6 * MIB))

    assert (rate, left) == (MIB, 4.0)


@pytest.mark.parametrize(("done", "total"), [(0, 10), (5, 0)])
def test_nobody_claims_to_know_the_end_without_a_rate_or_a_total(done: int, total: int) -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.measure(_progress(0, total))
    clock.now += 1.0

    assert meter.measure(_progress(done, total))[1] is None


def test_a_line_is_printed_every_ten_seconds_and_sooner_for_a_new_step() -> None:
    clock, lines = Clock(), []
    view = Lines(clock, lines.append)

    for second in range(27):
        clock.now = 100.0 + second
        view.show(_progress(second * MIB // 4, step="copying" if second < 24 else "syncing"))

    assert lines == [
        "copying: 512.0 KiB of 10.0 MiB, 256.0 KiB/s, 38 s left",
        "copying: 3.0 MiB of 10.0 MiB, 256.0 KiB/s, 28 s left",
        "copying: 5.5 MiB of 10.0 MiB, 256.0 KiB/s, 18 s left",
        "syncing: 6.0 MiB of 10.0 MiB",
    ]


def test_work_of_a_second_prints_no_line() -> None:
    clock, lines = Clock(), []
    view = Lines(clock, lines.append)

    for tick in range(10):
        clock.now = 100.0 + tick / 10
        view.show(_progress(tick * MIB, step=f"step {tick}"))

    assert lines == []


def test_json_says_at_most_two_lines_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    view = JsonLines("resolve/1", clock)

    for tick in range(1000):
        clock.now = 100.0 + tick / 1000
        view.show(_progress(tick * 1000))

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert lines[1]["bytes_per_s"] == pytest.approx(1_000_000)


def test_a_bar_shows_step_bytes_and_what_is_worked_on() -> None:
    screen = io.StringIO()

    with Bar(Console(file=screen, force_terminal=True, width=120, _environ={"TERM": "xterm"})) as bar:
        bar.show(_progress(5 * MIB, step="hashing"))
        bar.show(Progress(step="copying", done_bytes=5 * MIB, total_bytes=10 * MIB, detail="[red]w\x1b[2J"))

    assert "copying" in screen.getvalue()
    assert "5.0/10.0 MiB" in screen.getvalue()
    assert "[red]w\\x1b[2J" in screen.getvalue()
