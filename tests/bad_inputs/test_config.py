"""Configurations that are none (SCENARIOS 6.2: B65): every one is refused with what is wrong, and with 78."""

import os
import time
from pathlib import Path

import pytest
from crdt_merge_node.config import load_config
from crdt_merge_node.errors import ConfigError
from crdt_merge_protocol.limits import MIB
from support.siege import bounded_memory

FILES: dict[str, bytes] = {
    "not TOML": b"[listen\nport = 1",
    "a NUL": b"\x00",
    "not UTF-8": b"[node]\nname = '\xff'",
    "UTF-16": "[listen]\nport = 1".encode("utf-16"),
    "a byte order mark": "\ufeff[listen]\nport = 1".encode(),
    "JSON": b'{"listen": {"port": 1}}',
    "YAML": b"listen:\n  port: 1\n",
    "an unknown section": b"[listne]\nport = 1",
    "an unknown key": b"[listen]\nprot = 1",
    "a key outside of a section": b"port = 1",
    "a section that is a number": b"listen = 1",
    "a section that is a list": b"[[listen]]\nport = 1",
    "a section within a section": b"[listen.port]\nvalue = 1",
    "one section twice": b"[listen]\nport = 1\n[listen]\nport = 2",
    "one key twice": b"[listen]\nport = 1\nport = 2",
    "a negative port": b"[listen]\nport = -1",
    "a port of 2^16": b"[listen]\nport = 65536",
    "a port of sixty thousand digits": b"[listen]\nport = " + b"9" * 60_000,
    "a port of five thousand digits": b"[listen]\nport = " + b"9" * 5_000,
    "a port in a float": b"[listen]\nport = 1.5",
    "a port that is NaN": b"[listen]\nport = nan",
    "a port that is infinite": b"[listen]\nport = inf",
    "a port that is true": b"[listen]\nport = true",
    "a port that is a date": b"[listen]\nport = 2026-13-45",
    "a port that is a list": b"[listen]\nport = [1]",
    "a host that is empty": b"[listen]\nhost = ''",
    "a negative limit": b"[storage]\nreserve_bytes = -1",
    "a limit in parsecs": b"[storage]\nreserve_bytes = '1 parsec'",
    "a limit that is infinite": b"[storage]\nreserve_bytes = inf",
    "a limit of 1e999": b"[storage]\nreserve_bytes = '1e999'",
    "too little memory": b"[resolve]\nmemory_bytes = 1",
    "no workers": b"[resolve]\nworkers = 0",
    "2^63 workers": b"[resolve]\nworkers = 9223372036854775808",
    "a seed that is no address": b"[peers]\nseeds = ['nonsense']",
    "seeds that are numbers": b"[peers]\nseeds = [1, 2]",
    "65 seeds": b"[peers]\nseeds = [" + b"'a:1'," * 65 + b"]",
    "a level that is none": b"[log]\nlevel = 'loud'",
    "a name that climbs": b"[node]\nname = '../up'",
    "a data directory in its own file": b"[node]\ndata_dir = '/elsewhere'",
    "depth 5,000": b"a = " + b"[" * 5_000 + b"]" * 5_000,
    "depth 100,000": b"a = " + b"[" * 100_000,
    "dots without end": b"a" + b".a" * 30_000 + b" = 1",
    "a string without end": b'a = "' + b"x" * 60_000,
    "an escape that is none": b'a = "\\ud800"',
    "two mebibytes": b"# " + b"x" * (2 * MIB),
}


@pytest.mark.parametrize("case", FILES)
def test_b65_a_file_that_is_no_configuration_is_refused_with_what_is_wrong(case, tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_bytes(FILES[case])
    began = time.process_time()
    with bounded_memory(16 * MIB), pytest.raises(ConfigError) as caught:
        load_config(None, {"node.data_dir": str(tmp_path)}, {})

    assert caught.value.exit_code == 78
    assert all(problem.strip() for problem in caught.value.problems)
    assert len(str(caught.value)) < 10_000, "whatever is wrong is said in a few lines"
    assert time.process_time() - began < 60


@pytest.mark.parametrize("kind", ["directory", "fifo", "endless device", "loop", "dangling link", "socket"])
def test_b65_a_path_at_which_there_is_no_file_is_named_and_never_waited_for(kind, tmp_path: Path):
    import socket

    path = tmp_path / "given.toml"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "endless device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "dangling link":
            path.symlink_to(tmp_path / "absent")
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
    with bounded_memory(), pytest.raises(ConfigError, match=r"given\.toml"):
        load_config(path, {"node.data_dir": str(tmp_path)}, {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CRDT_MERGE_NODE_LISTEN__PORT", "-1"),
        ("CRDT_MERGE_NODE_LISTEN__PORT", "1\n2"),
        ("CRDT_MERGE_NODE_LISTEN__PORT", "9" * 5000),
        ("CRDT_MERGE_NODE_LISTEN__PORT", "\u0663"),
        ("CRDT_MERGE_NODE_LISTEN__PROT", "1"),
        ("CRDT_MERGE_NODE_NODE__NAME", "\x1b[2J"),
        ("CRDT_MERGE_NODE_NODE__NAME", "a" * 1_000_000),
        ("CRDT_MERGE_NODE_PEERS__SEEDS", "," * 100 + "x"),
        ("CRDT_MERGE_NODE_PEERS__SEEDS", "a:1," * 1000),
        ("CRDT_MERGE_NODE___", "1"),
        ("CRDT_MERGE_NODE_" + "A" * 5000, "1"),
        ("CRDT_MERGE_NODE_RESOLVE__WORKERS", "lots"),
        ("CRDT_MERGE_NODE_STORAGE__RESERVE_BYTES", "-5GiB"),
    ],
    ids=range(13),
)
def test_b65_b75_a_variable_that_is_no_setting_is_refused(variable, value, tmp_path: Path):
    with bounded_memory(), pytest.raises(ConfigError) as caught:
        load_config(None, {"node.data_dir": str(tmp_path)}, {variable: value})

    assert len(str(caught.value)) < 10_000


def test_b65_what_is_wrong_is_all_said_at_once_and_nothing_is_half_read(tmp_path: Path):
    text = "[listen]\nport = -1\n[storage]\nreserve_bytes = -1\n[log]\nlevel = 'loud'\n[oops]\n"
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"node.data_dir": str(tmp_path)}, {})

    assert len(caught.value.problems) == 4
