"""Tokens and the book of open invitations."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from crdt_merge_node.errors import ConfigError
from crdt_merge_node.transport.invites import StoredInvites, Token, create_invite, invite_digest
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

SECRET = bytes(range(16))
ONE, TWO = bytes([1]) * 32, bytes([2]) * 32
TOKEN = Token(cluster=bytes(32), addresses=("127.0.0.1:7946",), secret=SECRET, expires_at=1_790_000_000)


class Meta:
    """Small facts in memory, in the shape of the node's store."""

    def __init__(self) -> None:
        self.facts: dict[str, bytes] = {}

    async def put_meta(self, key: str, value: bytes) -> None:
        await asyncio.sleep(0)
        self.facts[key] = value

    async def get_meta(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return self.facts.get(key)


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(scenario)


def test_a_token_is_one_word_that_survives_copying() -> None:
    text = TOKEN.to_text()

    assert text.startswith("cmn1-")
    assert text.removeprefix("cmn1-").isalnum()
    assert Token.from_text(f"  {text.upper()}\n") == TOKEN


@examples(50)
@given(
    st.builds(
        Token,
        cluster=st.binary(min_size=32, max_size=32),
        addresses=st.lists(st.text(max_size=50), max_size=8).map(tuple),
        secret=st.binary(min_size=16, max_size=16),
        expires_at=st.integers(0, 2**40),
    )
)
def test_every_token_can_be_read_back(token: Token) -> None:
    assert Token.from_text(token.to_text()) == token


@pytest.mark.parametrize("text", ["", "cmn1-", "cmn2-aaaa", "hello", "cmn1-" + "a" * 9999, "cmn1-\u00e9"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        Token.from_text(text)


def test_a_typing_error_anywhere_is_noticed() -> None:
    text = TOKEN.to_text()
    for position in range(len("cmn1-"), len(text)):
        wrong = "a" if text[position] != "a" else "b"
        with pytest.raises(ConfigError, match="damaged"):
            Token.from_text(text[:position] + wrong + text[position + 1 :])


@examples(200)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", max_size=300))
def test_no_text_escapes_as_another_error(text: str) -> None:
    with pytest.raises(ConfigError):
        Token.from_text("cmn1-" + text)


def test_an_invitation_admits_one_node_which_may_ask_again() -> None:
    async def scenario() -> list[str]:
        book = StoredInvites(Meta())
        await book.add(invite_digest(SECRET), 100)
        return [
            await book.consume(invite_digest(SECRET), node, now=now)
            for node, now in [(ONE, 50), (TWO, 60), (ONE, 70), (ONE, 100), (TWO, 100)]
        ]

    assert run(scenario()) == ["ok", "used", "ok", "expired", "used"]


def test_an_expired_or_unknown_invitation_admits_nobody() -> None:
    async def scenario() -> list[str]:
        book = StoredInvites(Meta())
        await book.add(invite_digest(SECRET), 100)
        late = await book.consume(invite_digest(SECRET), ONE, now=100)
        return [late, await book.consume(bytes(32), ONE, now=0)]

    assert run(scenario()) == ["expired", "unknown"]


def test_of_two_joiners_at_once_one_gets_in() -> None:
    async def scenario() -> list[str]:
        book = StoredInvites(Meta())
        await book.add(invite_digest(SECRET), 100)
        asks = (book.consume(invite_digest(SECRET), node, now=1) for node in (ONE, TWO))
        return list(await asyncio.gather(*asks))

    assert sorted(run(scenario())) == ["ok", "used"]


def test_the_book_does_not_hold_the_secret() -> None:
    async def scenario() -> tuple[str, dict[str, bytes]]:
        meta = Meta()
        text = await create_invite(
            StoredInvites(meta), cluster=ONE, addresses=("a:1",), secret=SECRET, expires_at=9
        )
        return text, meta.facts

    text, facts = run(scenario())
    assert Token.from_text(text).secret == SECRET
    assert len(facts) == 1
    assert not any(SECRET in value or SECRET.hex() in key for key, value in facts.items())


def test_an_invitation_to_nowhere_is_not_made() -> None:
    async def scenario() -> None:
        await create_invite(StoredInvites(Meta()), cluster=ONE, addresses=(), secret=SECRET, expires_at=9)

    with pytest.raises(ConfigError, match="needs an address"):
        run(scenario())
