"""What an operator asks of daemons that run: are you well, what is wrong, what goes into a report."""

import json
import re
import tarfile

from crdt_merge_node.local_cluster import Member
from support.daemons import Harness, ask, cli


def test_a_well_node_is_ok_for_a_monitor_and_a_lonely_one_is_critical(harness: Harness) -> None:
    member = harness.members[0]
    harness.run(harness.cluster.connected())

    line = cli(member, "check", "--timeout-s", "300", "--peers-min", "2").stdout

    assert line.startswith("CRDT-MERGE OK - 2 live peers; ")
    assert "certificate=" in line
    assert (
        "CRITICAL - 2 live peers, at least 3 wanted"
        in cli(member, "check", "--timeout-s", "300", "--peers-min", "3", status=2).stdout
    )


def test_the_doctor_finds_no_problem_in_three_daemons_that_work(harness: Harness) -> None:
    answer = json.loads(cli(harness.members[1], "doctor", "--timeout-s", "60", "--json").stdout)

    by_check: dict[str, list[str]] = {}
    for finding in answer["findings"]:
        by_check.setdefault(finding["check"], []).append(finding["found"])
    assert answer["is_healthy"]
    assert any("TLS" in found for found in by_check["seeds"])
    assert any("connected peers run" in found for found in by_check["peers"])
    assert any("holds" in found or "node " in found for found in by_check["identity"])


def test_a_probe_of_the_doctor_disturbs_no_connection(harness: Harness) -> None:
    harness.run(harness.cluster.connected())
    before = _since(harness.members[0])

    cli(harness.members[1], "doctor", "--timeout-s", "60")

    assert _since(harness.members[0]) == before


def test_a_bundle_of_a_daemon_holds_events_and_metrics_and_no_secret(harness: Harness) -> None:
    member = harness.members[0]
    token = ask(member, "invite")["token"]
    path = harness.files / "report.tar.gz"

    answer = ask(member, "bundle", "-o", str(path), "--no-names")

    names = {item["name"] for item in answer["files"]}
    assert names >= {
        "status.json",
        "why.json",
        "peers.json",
        "groups.json",
        "events.ndjson",
        "certificate.json",
    }
    with tarfile.open(path) as archive:
        parts = [archive.extractfile(name) for name in archive.getnames()]
        text = b"\n".join(part.read() for part in parts if part is not None)
    assert b"node.ready" in text
    assert token.encode() not in text
    for secret in ("identity/node.key", "identity/tls.key", "ca/ca.key"):
        data = (member.data_dir / secret).read_bytes()
        assert data not in text
        assert data.hex().encode() not in text
    # As a word: what stands for a name may begin like it.
    assert re.search(rb"(?<!\w)" + re.escape(member.name.encode()) + rb"(?!\w)", text) is None
    assert str(harness.files).encode() not in text


def _since(member: Member) -> list[tuple[str, float]]:
    peers = ask(member, "peer", "list")["peers"]
    return sorted((peer["id"], peer["since"]) for peer in peers if peer["direction"])
