"""The nightly stages and the benchmarks, which nobody runs by day: what they name must be there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nightly import record
from nightly.record import Record
from nightly.stages import ROOT, STAGES


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_step_of_a_stage_has_its_own_name_and_names_tests_that_exist(stage):
    steps = stage.steps(7)

    assert len({step.name for step in steps}) == len(steps) > 0
    for argument in {argument for step in steps for argument in step.command}:
        path, _, test = argument.partition("::")
        if path.startswith("tests/"):
            assert f"def {test}(" in (ROOT / path).read_text() if test else (ROOT / path).is_file()


def test_variables_of_a_step_are_read_by_somebody():
    """A renamed variable would silently shrink a night to a day."""
    sources = "".join(
        path.read_text() for path in (ROOT / "tests").rglob("*.py") if "nightly" not in path.parts
    )
    names = {name for stage in STAGES for step in stage.steps(7) for name in step.environment}

    assert [name for name in sorted(names) if name.startswith("CRDT_MERGE") and name not in sources] == []


def test_a_stage_goes_on_with_its_seed_after_the_steps_that_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path / ".nightly")
    first = Record.load("frames", "commit")
    first.passed["frames-0"] = 1.5
    first.save()

    assert Record.load("frames", "commit") == first
    assert Record.load("frames", "another commit").passed == {}
    first.path.write_text(json.dumps({"stage": "frames"}))
    assert Record.load("frames", "commit").passed == {}


def test_every_part_of_the_benchmarks_can_be_imported():
    parts = sorted(path.stem for path in Path(ROOT, "tests/benchmarks").glob("[a-z]*.py"))
    code = "\n".join(f"import tests.benchmarks.{part}" for part in parts)

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
