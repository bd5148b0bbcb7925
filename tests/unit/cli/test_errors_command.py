"""`errors`: every code that can be seen has a page, and every page is of a code."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path

import crdt_merge_node
import pytest
from click.testing import CliRunner, Result
from crdt_merge_node.cli.app import COMMANDS, root
from crdt_merge_node.cli.errors import DOCUMENT, read_pages
from crdt_merge_protocol.errors import CrdtMergeError

NODE = Path(crdt_merge_node.__file__).parent
PAGES = read_pages()


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["errors", *arguments])


def _classes() -> dict[str, type[CrdtMergeError]]:
    """Return the class of each code, from all modules of the tree."""
    for module in pkgutil.walk_packages([str(NODE)], "crdt_merge_node."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[str, type[CrdtMergeError]] = {}
    pending: list[type[CrdtMergeError]] = [CrdtMergeError]
    while pending:
        kind = pending.pop()
        if "code" in vars(kind) and kind.__module__.startswith("crdt_merge_"):
            assert kind.code not in found, f"{kind} and {found[kind.code]} share a code"
            found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return found


def _alarm_codes() -> set[str]:
    """Return the codes of alarms that are written as words: ``Alarms.set(..., code="noun.verb_past")``."""
    codes: set[str] = set()
    for path in NODE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and any(word.arg == "severity" for word in call.keywords):
                code = next((word.value for word in call.keywords if word.arg == "code"), None)
                value = (
                    code.value if isinstance(code, ast.Constant) else constants.get(getattr(code, "id", ""))
                )
                if isinstance(value, str):
                    codes.add(value)
    return codes


def test_every_code_in_the_tree_has_a_page_and_every_page_a_code() -> None:
    """A new error needs a section in ``cli/ERRORS.md``: what happened, why, what to do."""
    classes = _classes()
    words = {code for code, page in PAGES.items() if page.exit is None}
    needed = {code for code in _alarm_codes() if code not in classes}

    assert set(PAGES) - words == set(classes)
    assert needed <= words
    assert len(PAGES) == DOCUMENT.read_text().count("\n## ")
    assert {code: kind.__name__ for code, kind in classes.items()} == {
        code: page.name for code, page in PAGES.items() if page.exit is not None
    }
    assert {code: kind.exit_code for code, kind in classes.items()} == {
        code: page.exit for code, page in PAGES.items() if page.exit is not None
    }
    sources = "".join(path.read_text() for path in NODE.rglob("*.py"))
    assert all(f'"{word}"' in sources for word in words)


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.code)
def test_a_page_says_what_happened_why_and_what_to_do(page) -> None:
    assert all(text.endswith((".", "`")) for text in (page.what, page.why, page.remedy))
    for command in re.findall(r"`crdt-merge-node (\w+)", f"{page.what} {page.why} {page.remedy}"):
        assert command in COMMANDS


@pytest.mark.parametrize("code", ["E1203", "e1203", "1203"])
def test_a_code_is_looked_up_however_it_is_written(code: str) -> None:
    result = _run("lookup", code)

    assert result.exit_code == 0
    assert result.stdout.startswith("E1203 ClusterMismatchError (exit status 5)\n")
    assert "What to do: Correct the seed" in result.stdout


def test_an_alarm_that_is_no_error_has_a_page_too() -> None:
    assert _run("lookup", "resolve.disagreed").stdout.startswith("resolve.disagreed (an alarm of `status`)\n")


@pytest.mark.parametrize("code", ["E9999", "", "x" * 100_000, "\x1b[2J"])
def test_a_code_that_is_none_is_not_found(code: str) -> None:
    result = _run("lookup", "--", code)

    assert result.exit_code == 4
    assert len(result.stderr) < 400
    assert "\x1b" not in result.stderr


def test_all_codes_are_listed_in_the_order_of_the_document() -> None:
    listed = [line.split()[0] for line in _run("list").stdout.splitlines()[1:]]
    told = json.loads(_run("list", "--json").stdout)["errors"]

    assert listed == list(PAGES) == [page["code"] for page in told]
    assert json.loads(_run("lookup", "E1000", "--json").stdout)["error"] == told[0]


def test_the_document_reads_well_as_markdown() -> None:
    assert all(len(line) <= 120 for line in DOCUMENT.read_text().splitlines())
