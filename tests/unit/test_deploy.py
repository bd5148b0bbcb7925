"""The systemd unit says nothing that systemd does not understand, and starts what exists."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "crdt-merge-node.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_the_unit_passes_systemd_analyze_without_a_word(tmp_path: Path) -> None:
    """Misspelt keys are only warned about, with status 0: so any output fails."""
    command = Path(sys.executable).with_name("crdt-merge-node")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/crdt-merge-node", str(command)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )

    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_a_wrong_configuration_is_not_restarted() -> None:
    assert "RestartPreventExitStatus=78" in UNIT.read_text()
