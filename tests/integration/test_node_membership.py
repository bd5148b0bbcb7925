"""Whole nodes: new certificates under real TLS, leaving, coming back."""

from __future__ import annotations

from pathlib import Path

import pytest
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.transport.certificates import Term
from crdt_merge_node.transport.contexts import ALPN_BULK
from crdt_merge_node.transport.identity import load_authority, load_tls_key, read_certificates, store_renewed
from support.whole_nodes import Site

pytestmark = pytest.mark.asyncio

DAY_S = 86_400.0


async def test_a_certificate_that_is_due_is_renewed_while_connections_go_on(tmp_path: Path) -> None:
    site, fs = Site(tmp_path), SystemFs()
    holder_dir, old_dir = site.make(), site.make()
    async with site.running(holder_dir) as holder:
        authority = load_authority(holder_dir, fs)
        assert authority is not None
        key = load_tls_key(old_dir, fs).public_key()
        node = read_node(old_dir)
        aged = authority.issue(key, node, now=holder.services.clock.now() - 600 * DAY_S)
        store_renewed(old_dir, aged, authority.certificate, fs=fs)
        async with site.running(old_dir, holder.address) as old:
            await old.connected(holder)
            connection = old.services.driver.connections[holder.id]
            before = old.services.certificate.expires_at
            info = await old.api.certificate_renew()
            fetched = await old.services.endpoint.dial(holder.address, alpn=ALPN_BULK, expect=holder.id)

            assert info.expires > before
            assert Term.of(read_certificates(old_dir, fs)[0]).expires_at == info.expires
            assert old.services.driver.connections[holder.id] is connection
            assert not connection.closed.done()
            assert (await old.api.certificate_show()).last_error == ""
            fetched.close("seen")


def read_node(data_dir: Path) -> bytes:
    from crdt_merge_node.transport.identity import Identity

    return Identity.load(data_dir, SystemFs()).node


async def test_who_holds_the_ca_says_so_in_its_hello(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as (holder, other):
        features = [
            node.services.driver.connections[peer.id].hello.features
            for node, peer in ((other, holder), (holder, other))
        ]

        assert ["ca" in each for each in features] == [True, False]


async def test_a_peer_that_is_given_up_is_not_dialled_until_it_comes_by_itself(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first:
        async with site.running(second_dir, first.address, name="gone") as second:
            await first.connected(second)
            with pytest.raises(InvalidRequestError, match="is connected"):
                await first.api.peer_forget("gone")
        await first.until(lambda: not first.services.driver.connections)
        forgotten = await first.api.peer_forget("gone")
        assert forgotten.state == "left"
        assert second.id not in first.services.engine.overlay.peers
    async with site.running(first_dir) as first:
        assert [peer.state for peer in await first.api.peer_list()] == ["left"]
        async with site.running(second_dir, first.address) as second:
            await first.connected(second)
            assert [peer.state for peer in await first.api.peer_list()] == ["alive"]
    async with site.running(first_dir) as first:
        assert second.id in first.services.engine.overlay.peers
