"""Names that would be paths, commands or other names (SCENARIOS 6.2: B53, B58; T21, T50)."""

import json
import os
import struct
from pathlib import Path

import pytest
from crdt_merge_node.config import load_config
from crdt_merge_node.errors import ConfigError
from crdt_merge_protocol.blobs import Manifest, Schema
from crdt_merge_protocol.canonical import encode, is_name
from crdt_merge_protocol.errors import CrdtMergeError, MalformedTensorFileError, RemoteProtocolError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.messages.gossip import GenesisFound, Gossip
from crdt_merge_protocol.operations import Kind
from support.authors import make_genesis
from support.forged import operation, random_key, signed_wire
from support.siege import GROUP_NAME, Siege

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD: dict[str, str] = {
    "a path that climbs": "../../etc/passwd",
    "a climb in the middle": "a/../../b",
    "two dots": "..",
    "one dot": ".",
    "dots at the end": "a/..",
    "absolute": "/etc/passwd",
    "a hidden file": ".bashrc",
    "a home": "~/.ssh/id_rsa",
    "backslashes": "..\\..\\windows",
    "a UNC path": "\\\\server\\share",
    "a drive": "C:\\boot.ini",
    "percent-encoded slash": "a%2fb",
    "percent-encoded dots": "..%2f..%2f",
    "a NUL": "a\0b",
    "a NUL at the end": "model\0.safetensors",
    "a line break": "a\nb",
    "a carriage return": "a\rb",
    "an escape sequence": "\x1b[2J\x1b]0;title\x07",
    "a tab": "a\tb",
    "a delete": "a\x7f",
    "nothing": "",
    "a space": " ",
    "a space at the end": "a ",
    "201 characters": "a" * 201,
    "a megabyte": "a" * 1_000_000,
    "right to left": "a\u202egpj.exe",
    "a zero-width space": "a\u200bb",
    "a full-width twin": "\uff41\uff42",
    "a Cyrillic twin": "\u0430dmin",
    "an accent": "caf\u00e9",
    "an accent apart": "cafe\u0301",
    "emoji": "\U0001f9e8",
    "a combining flood": "a" + "\u0301" * 60,
    "a shell command": "$(reboot)",
    "another shell command": "a;reboot",
    "a pipe": "a|b",
    "a quote": 'a"b',
    "a wildcard": "*",
    "an URL": "http://a/b?c",
    "a Unicode digit": "model\u0663",
}
GOOD = ["CON", "NUL.txt", "a", "A-Z_0.9/x", "a" * 200, "model.layers.0.weight", "COM1", "-rf", "--help", "0"]


def file_with(name: str) -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


async def test_b53_the_list_has_forty_names_and_none_is_one():
    assert len(BAD) == 40
    assert not any(is_name(name) for name in BAD.values())
    assert all(map(is_name, GOOD))


@pytest.mark.parametrize("case", BAD)
async def test_b53_a_tensor_of_that_name_is_refused(siege: Siege, case, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_with(BAD[case]))
    async with siege.unharmed(is_offence=False):
        with pytest.raises(MalformedTensorFileError) as caught:
            await siege.live.add(GROUP_NAME, path, slot="bad")

    assert str(caught.value).isprintable(), "an error must not be able to write to a terminal"


@pytest.mark.parametrize("case", BAD)
async def test_b58_a_slot_or_group_of_that_name_is_refused(siege: Siege, case):
    async with siege.unharmed(is_offence=False):
        for attempt in (
            siege.live.add(GROUP_NAME, siege.model, slot=BAD[case]),
            siege.live.create_group(BAD[case], siege.model),
            siege.live.api.group_show(BAD[case]),
        ):
            with pytest.raises(CrdtMergeError) as caught:
                await attempt
            assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("case", BAD)
async def test_b53_b58_nothing_of_that_name_is_read_from_a_peer(siege: Siege, case):
    name = BAD[case]
    with pytest.raises(RemoteProtocolError):
        Manifest.decode(encode([[name, "F32", [2], bytes(32)]])[: 8 << 20])
    with pytest.raises(RemoteProtocolError):
        Schema.decode(encode([[name, "F32", [2]]]))
    genesis = named_genesis(name)
    with pytest.raises(RemoteProtocolError):
        Genesis.decode(genesis)


@pytest.mark.parametrize("case", [case for case in BAD if len(BAD[case]) < 50_000])
async def test_b58_a_group_of_that_name_is_not_taken_from_a_peer(siege: Siege, case):
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.send(GenesisFound(genesis=named_genesis(BAD[case])))

        assert await hostile.is_sent_away()


@pytest.mark.parametrize("case", [case for case in BAD if len(BAD[case]) < 50_000])
async def test_b58_an_operation_that_names_such_a_slot_has_no_effect(siege: Siege, case):
    """The envelope is good, so it is kept and relayed; what it says cannot be read (R22)."""
    key, before = random_key(), siege.state.view.visible
    body = b"\x01" + encode([BAD[case], "model", bytes(32), 1 << 32, None])
    made = operation(siege.group, key, kind=Kind.ADD, body=body)
    async with siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=(signed_wire(made, key),)))
        await siege.live.until(lambda: made.id in siege.state)

    assert siege.state.view.visible == before


@pytest.mark.parametrize("case", [case for case in BAD if len(BAD[case]) < 200])
async def test_b58_a_peer_that_calls_itself_so_has_no_name(siege: Siege, case):
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.send(hostile.hello(features=(f"name={BAD[case]}",), agent=BAD[case][:100]))
        await hostile.is_still_heard()
        [shown] = [peer for peer in await siege.live.api.peer_list() if peer.id == hostile.node.hex()]

        assert shown.name == ""


@pytest.mark.parametrize("case", [case for case in BAD if BAD[case] and "\0" not in BAD[case]])
async def test_b58_a_node_cannot_be_called_so(case, tmp_path: Path):
    with pytest.raises(ConfigError):
        load_config(None, {"node.data_dir": str(tmp_path), "node.name": BAD[case]}, {})


@pytest.mark.parametrize("name", GOOD)
async def test_b53_b58_what_is_special_elsewhere_is_a_name_here_and_no_file(
    siege: Siege, name, tmp_path: Path
):
    """Files are named by digests alone, so ``CON`` and ``-rf`` are names like others."""
    async with siege.unharmed(is_offence=False):
        path = tmp_path / "model.safetensors"
        path.write_bytes(file_with(name))
        with pytest.raises(CrdtMergeError, match="schema"):
            await siege.live.add(GROUP_NAME, path, slot=name)
    assert name not in os.listdir(siege.live.services.config.node.data_dir)


def named_genesis(name: str) -> bytes:
    """Return the bytes of a genesis of any name."""
    from msgpack import packb, unpackb

    fields = unpackb(make_genesis().encode())
    assert fields[2] == "group"
    return bytes(packb([*fields[:2], name, *fields[3:]], use_bin_type=True))
