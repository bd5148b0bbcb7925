"""One command never writes over what it reads, nor twice to one place."""

from pathlib import Path

import click
import pytest
from crdt_merge_node.cli.values import refuse_clashes


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["a"], ["a"]),
        (["./x/../a"], ["a"]),
        (["link"], ["a"]),
        (["b", "b"], []),
        (["directory"], ["directory/c"]),
    ],
)
def test_one_place_for_two_files_is_bad_usage(tmp_path: Path, monkeypatch, written, read) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    Path("link").symlink_to("a")

    with pytest.raises(click.UsageError, match="another file of this command"):
        refuse_clashes(written, read)


def test_other_places_are_taken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    refuse_clashes(["a", None, "directory/c"], ["b", None, "directory/d"])


def test_a_path_longer_than_any_is_left_to_who_opens_it(monkeypatch) -> None:
    """Following a megabyte of names takes gigabytes, and the system refuses them at once."""
    followed: list[Path] = []
    monkeypatch.setattr(Path, "resolve", lambda path: followed.append(path) or path)

    refuse_clashes(["/" + "a/" * 2048, "a"], ["b/" * 2048])

    assert followed == [Path("a")]
