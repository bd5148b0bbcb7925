import ast
import io
import json
import logging
import re
from pathlib import Path

import crdt_merge_node
import pytest
import structlog
from crdt_merge_node.errors import FullError
from crdt_merge_node.telemetry.logging import EVENTS, configure_logging, get_logger

NODE = Path(crdt_merge_node.__file__).parent
METHODS = {"debug", "info", "warning", "error", "exception", "critical"}


class FixedClock:
    def now(self) -> float:
        return 1_800_000_000.25

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def stream():
    root = logging.getLogger()
    before = root.handlers, root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers, root.level = before


def logged(stream) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_short_ids_and_error_codes(stream):
    configure_logging(stream=stream, clock=FixedClock())
    error = FullError("no room on /data.", hint="Free some.")

    get_logger("crdt_merge_node.storage.store", node=bytes(32)).error("store.full", error=error)

    (line,) = logged(stream)
    assert line == {
        "event": "store.full",
        "level": "error",
        "timestamp": "2027-01-15T08:00:00.250000+00:00",
        "module": "storage.store",
        "node": "000000000000",
        "error": "no room on /data. Free some.",
        "error_code": "E1502",
    }


def test_lines_below_the_level_are_not_written(stream):
    configure_logging(level="warning", stream=stream)

    get_logger().info("node.ready")

    assert stream.getvalue() == ""


def test_a_console_line_is_text(stream):
    configure_logging(form="console", stream=stream)

    get_logger().info("node.ready", address="127.0.0.1:7946")

    assert "node.ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_warnings_of_libraries_are_carried_over(stream):
    configure_logging(stream=stream)

    logging.getLogger("asyncio").error("socket.accept() out of system resource")
    logging.getLogger("asyncio").info("chatter")

    (line,) = logged(stream)
    assert (line["event"], line["logger"]) == ("library.warned", "asyncio")


def log_calls(path: Path) -> list[tuple[str, str, int]]:
    """Return (method, event, line) of every call of a logger in a source file."""
    found = []
    for call in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        target = ast.unparse(call.func.value)
        if call.func.attr in METHODS and (
            "log" in target.rpartition(".")[2].lower() or "get_logger" in target
        ):
            assert call.args, f"{path}:{call.lineno}: a log line without an event"
            assert isinstance(call.args[0], ast.Constant), (
                f"{path}:{call.lineno}: the event must be a constant"
            )
            found.append((call.func.attr, str(call.args[0].value), call.lineno))
    return found


@pytest.mark.parametrize("path", sorted(NODE.rglob("*.py")), ids=lambda path: str(path.relative_to(NODE)))
def test_every_event_in_the_source_is_declared_with_its_level(path):
    for method, event, line in log_calls(path):
        assert event in EVENTS, f"{path}:{line}: {event} is not declared in telemetry/logging.py"
        expected = "error" if method in ("exception", "critical") else method
        assert EVENTS[event].level == expected, f"{path}:{line}: {event} is declared {EVENTS[event].level}"


def test_event_names_are_noun_and_past_verb():
    for name in EVENTS:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", name), name
