"""The messages of joining: every one can be read back, and nonsense is only ever a remote error."""

from __future__ import annotations

import contextlib

import pytest
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.join import JoinGrant, JoinOffer, JoinRequest, RenewGrant, RenewRequest
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

MESSAGES = st.one_of(
    st.builds(JoinOffer, ca=st.binary(max_size=4096), cluster_name=st.text(max_size=200)),
    st.builds(
        JoinRequest,
        secret=st.binary(min_size=16, max_size=16),
        node=st.binary(min_size=32, max_size=32),
        request=st.binary(max_size=4096),
        proof=st.binary(min_size=64, max_size=64),
    ),
    st.builds(
        JoinGrant,
        certificate=st.binary(max_size=4096),
        introducers=st.lists(st.text(max_size=256), max_size=64).map(tuple),
    ),
    st.builds(RenewRequest, request=st.binary(max_size=4096)),
    st.builds(RenewGrant, certificate=st.binary(max_size=4096), ca=st.binary(max_size=4096)),
)


@examples(60)
@given(MESSAGES)
def test_every_message_can_be_read_back(message: Message) -> None:
    assert FrameDecoder().feed(encode_frame(message)) == [message]


@examples(200)
@given(
    st.sampled_from([JoinOffer, JoinRequest, JoinGrant, RenewRequest, RenewGrant]), st.binary(max_size=200)
)
def test_nonsense_is_only_ever_a_remote_error(kind: type[Message], body: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        kind.from_body(body)


@pytest.mark.parametrize(
    "message",
    [
        JoinOffer(ca=bytes(4097), cluster_name="x"),
        JoinOffer(ca=b"", cluster_name="x" * 201),
        JoinRequest(secret=bytes(15), node=bytes(32), request=b"", proof=bytes(64)),
        JoinGrant(certificate=b"", introducers=("a:1",) * 65),
        JoinGrant(certificate=b"", introducers=("a" * 257,)),
        RenewRequest(request=bytes(4097)),
        RenewGrant(certificate=b"", ca=bytes(4097)),
    ],
    ids=["ca", "name", "secret", "introducers", "address", "request", "renewed ca"],
)
def test_what_is_too_large_or_too_short_is_refused(message: Message) -> None:
    with pytest.raises(RemoteProtocolError):
        FrameDecoder().feed(encode_frame(message))
