from pathlib import Path

import pytest
from crdt_merge_node.config import Config, load_config
from crdt_merge_node.config.model import known_keys, parse_address
from crdt_merge_node.errors import ConfigError, CorruptError, did_you_mean, error_class


def load(tmp_path, text=None, *, flags=None, environ=None) -> Config:
    path = None
    if text is not None:
        path = tmp_path / "node.toml"
        path.write_text(text)
    return load_config(path, {"node.data_dir": str(tmp_path / "data"), **(flags or {})}, environ or {})


def problems_of(tmp_path, text=None, **kwargs) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **kwargs)
    return caught.value.problems


def test_without_any_source_every_setting_has_its_default(tmp_path):
    config = load_config(None, {}, {"CRDT_MERGE_NODE_DATA_DIR": str(tmp_path)})

    assert config.node.data_dir == tmp_path
    assert config.listen.port == 7946
    assert config.storage.reserve_bytes == 256 * 1024 * 1024
    assert config.origin("listen.port").kind == "default"


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    text = "[listen]\nhost = 'file'\nport = 1\n[log]\nlevel = 'debug'\n"
    environ = {"CRDT_MERGE_NODE_LISTEN__HOST": "environment", "CRDT_MERGE_NODE_LISTEN__PORT": "2"}

    config = load(tmp_path, text, flags={"listen.port": 3}, environ=environ)

    assert (config.listen.port, config.listen.host, config.log.level) == (3, "environment", "debug")
    assert str(config.origin("listen.port")) == "flag"
    assert str(config.origin("listen.host")) == "environment CRDT_MERGE_NODE_LISTEN__HOST"
    assert str(config.origin("log.level")) == f"file {tmp_path / 'node.toml'}"
    assert config.origin("log.format").kind == "default"


def test_a_flag_that_was_not_given_changes_nothing(tmp_path):
    config = load(tmp_path, "[listen]\nport = 1\n", flags={"listen.port": None})

    assert config.listen.port == 1
    assert config.origin("listen.port").kind == "file"


def test_all_problems_are_reported_at_once(tmp_path):
    text = "[listen]\nport = 99999\nprot = 1\n[listne]\nport = 1\n[storage]\nreserve_bytes = -1\n"

    problems = problems_of(
        tmp_path, text, environ={"CRDT_MERGE_NODE_LOG__LEVLE": "info", "CRDT_MERGE_NODE_LOG__FORMAT": "xml"}
    )

    assert len(problems) == 6
    assert any("listen.port = 99999" in problem and "65535" in problem for problem in problems)
    assert any("'listen.prot'" in problem and '"listen.port"' in problem for problem in problems)
    assert any("'listne'" in problem and '"listen"' in problem for problem in problems)
    assert any("storage.reserve_bytes" in problem for problem in problems)
    assert any("CRDT_MERGE_NODE_LOG__LEVLE" in problem and "__LEVEL" in problem for problem in problems)
    assert any("log.format = 'xml' (environment CRDT_MERGE_NODE_LOG__FORMAT)" in p for p in problems)


def test_the_error_ends_the_command_with_78(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[listen]\nport = -1\n")

    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[listen\nport=1", "not TOML"),
        ("port = 1\n", 'Did you mean "listen.port"?'),
        ("listen = 3\n", "write [listen]"),
        ("[node]\nname = '../up'\n", "a name is made of"),
        ("[peers]\nseeds = ['nonsense']\n", "is not host:port"),
        ("[peers]\nseeds = 'a:1, b:x'\n", "is not host:port"),
        ("[resolve]\nworkers = 0\n", "greater than or equal to 1"),
        ("[storage]\nreserve_bytes = '1 parsec'\n", "byte"),
        ("\x00", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_what_to_do(tmp_path, text, expected):
    """B65."""
    (problem,) = problems_of(tmp_path, text)

    assert expected in problem


def test_a_file_that_was_named_must_exist_and_the_default_one_need_not(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.toml", {}, {})

    load_config(None, {"node.data_dir": str(tmp_path)}, {})


def test_the_file_in_the_data_directory_is_read_by_default(tmp_path):
    (tmp_path / "config.toml").write_text("[node]\nname = 'north'\n")

    config = load_config(None, {"node.data_dir": str(tmp_path)}, {})

    assert config.node.name == "north"


def test_a_file_inside_the_data_directory_cannot_move_it(tmp_path):
    (tmp_path / "config.toml").write_text("[node]\ndata_dir = '/elsewhere'\n")

    with pytest.raises(ConfigError, match="inside the data directory"):
        load_config(None, {"node.data_dir": str(tmp_path)}, {})


def test_sizes_and_lists_read_like_people_write_them(tmp_path):
    environ = {
        "CRDT_MERGE_NODE_STORAGE__RESERVE_BYTES": "1GiB",
        "CRDT_MERGE_NODE_PEERS__SEEDS": "10.0.0.1:7946, [::1]:7947",
        "CRDT_MERGE_NODE_RESOLVE__WORKERS": "",
    }

    config = load(tmp_path, environ=environ)

    assert config.storage.reserve_bytes == 1 << 30
    assert config.peers.seeds == ("10.0.0.1:7946", "[::1]:7947")
    assert config.resolve.workers is None


def test_variables_that_kubernetes_makes_for_a_service_are_not_settings(tmp_path):
    environ = {
        "CRDT_MERGE_NODE_SERVICE_HOST": "10.0.0.1",
        "CRDT_MERGE_NODE_SERVICE_PORT_GOSSIP": "7946",
        "CRDT_MERGE_NODE_PORT": "tcp://10.0.0.1:7946",
        "CRDT_MERGE_NODE_PORT_7946_TCP_ADDR": "10.0.0.1",
        "HOME": "/",
    }

    load(tmp_path, environ=environ)


def test_every_setting_is_described_and_listed_with_its_origin(tmp_path):
    listed = {key: origin.kind for key, _, origin in load(tmp_path).items()}

    assert set(listed) == set(known_keys())
    assert listed["node.data_dir"] == "flag"
    assert all(known_keys().values())


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:0", "a:65536", "::1:5", "a:٣", "a:+1", "a: 1"])
def test_what_is_not_an_address_is_refused(text):
    with pytest.raises(ValueError, match=r"host:port|brackets"):
        parse_address(text)


def test_addresses_are_read():
    assert parse_address("[::1]:7946") == ("::1", 7946)
    assert parse_address("node1.example.org:1") == ("node1.example.org", 1)


def test_a_suggestion_needs_likeness():
    assert did_you_mean("groop", ["group", "peer"]) == 'Did you mean "group"?'
    assert did_you_mean("xylophone", ["group", "peer"]) == ""


def test_codes_lead_back_to_their_classes():
    assert error_class("E1501") is CorruptError
    assert error_class("E9999").code == "E1000"


def test_the_environment_of_the_process_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("CRDT_MERGE_NODE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CRDT_MERGE_NODE_CONFIG", str(Path(tmp_path) / "c.toml"))
    (tmp_path / "c.toml").write_text("[log]\nformat = 'json'\n")

    config = load_config()

    assert (config.node.data_dir, config.log.format) == (tmp_path, "json")
