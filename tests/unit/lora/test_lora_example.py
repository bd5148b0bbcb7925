"""The example of adapters does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from crdt_merge_node.lora import example


def test_merged_adapters_know_more_than_any_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main([str(tmp_path / "made")]) == 0
    lines = capsys.readouterr().out.splitlines()
    shares = {line[:34].strip(): float(line[34:].rstrip("%")) for line in lines if line.endswith("%")}

    merged = shares.pop("merged, task_arithmetic")
    assert len(shares) == 6
    assert merged > max(shares.values()) + 5
    assert (tmp_path / "made/adapter-0/adapter_config.json").is_file()
