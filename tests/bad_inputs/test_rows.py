"""No row of the catalogue in scope is without a test, and the table in the README says where it is."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
README = (HERE / "README.md").read_text()


def spread(*ranges: tuple[int, int]) -> list[int]:
    return [row for first, last in ranges for row in range(first, last + 1)]


ROWS = spread(
    *((1, 24), (26, 28), (30, 30), (36, 36), (39, 60), (63, 68), (70, 70), (72, 72), (75, 75)),
)
"""All of B1-B76 whose subject exists and is not a history of valid operations."""


def sources() -> dict[str, str]:
    """Return the names and case names of all tests here, by file."""
    return {
        path.name: path.read_text() for path in sorted(HERE.glob("test_*.py")) if path.name != "test_rows.py"
    }


def rows_in(text: str) -> set[int]:
    """Return the rows that names of tests or of their cases carry."""
    named = re.findall(r"def (test_\w+)\(", text) + re.findall(r'"(b\d+(?: b\d+)* [^"]*)":', text)
    found: set[int] = set()
    for name in named:
        found |= {int(number) for number in re.findall(r"(?:^|[_ ])b(\d+)(?=[_ ])", name)}
        for first, last in re.findall(r"b(\d+)_to_b(\d+)", name):
            found |= set(range(int(first), int(last) + 1))
    return found


@pytest.mark.parametrize("row", ROWS)
def test_every_row_in_scope_has_a_test_that_is_named_after_it(row: int):
    assert [name for name, text in sources().items() if row in rows_in(text)]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_in_scope_is_in_the_table_with_files_that_have_it(row: int):
    lines = [line for line in README.splitlines() if line.startswith("| B") and ".py" in line]
    files = {
        file
        for line in lines
        if re.search(rf"\bB{row}\b", line.split("|")[1])
        for file in re.findall(r"`(test_\w+\.py)`", line)
    }

    assert files
    assert any(row in rows_in(sources().get(file, "")) for file in files)


def test_every_file_here_is_in_the_table():
    assert [name for name in sources() if f"`{name}`" not in README] == []


def test_every_other_row_has_a_reason():
    others = set(range(1, 77)) - set(ROWS)
    reasons = README.split("## Rows without a test here")[1]

    assert [row for row in sorted(others) if not re.search(rf"\bB{row}\b", reasons)] == []
