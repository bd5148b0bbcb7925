"""Work done once for all engines of a process gives what each would have got by itself."""

import pytest
from crdt_merge_protocol.errors import BadSignatureError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.messages.membership import Roots
from crdt_merge_protocol.messages.overlay import Accepted, IHave, Prune, Shuffle, View
from crdt_merge_protocol.messages.sync import Busy
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from crdt_merge_simulations.sharing import Codec, shared_work
from support.authors import Author, make_genesis

ID = bytes(range(32))
CONTACTS = ((ID, ("10.0.0.1:7946",)), (ID, ("host:1", "[::1]:2")))
SIGNED = Author(make_genesis()).add("one")


@pytest.mark.parametrize(
    "message",
    [
        Accepted(peers=CONTACTS),
        Busy(session=b"four", reason="at most 3 sessions are accepted", retry_after_ms=500),
        Gossip(group=ID, operations=(SIGNED.wire(),)),
        IHave(group=ID, ids=(ID, bytes(32))),
        Prune(),
        Roots(roots=((ID, ID, 70_000),)),
        Shuffle(nonce=bytes(8), population=300, steps=3, peers=CONTACTS),
        View(population=13),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_frame_is_that_of_the_encoder_and_says_its_message(message: Message) -> None:
    codec = Codec()

    frames = [codec.frame(message) for _ in range(2)]

    assert frames[0] is frames[1]
    assert frames[0].data == encode_frame(message)
    assert frames[0].message is message
    assert FrameDecoder().feed(frames[0].data) == [message]


def test_a_message_that_is_decoded_as_something_else_is_noticed() -> None:
    as_list = Accepted(peers=[(ID, ("10.0.0.1:7946",))])  # type: ignore[arg-type]  # The mistake.

    with pytest.raises(AssertionError, match="something else"):
        Codec().frame(as_list)


def test_operations_and_groups_are_read_once_and_only_meanwhile() -> None:
    wire, genesis = SIGNED.wire(), make_genesis().encode()

    with shared_work():
        assert SignedOperation.load(wire) is SignedOperation.load(wire)
        assert Genesis.decode(genesis) is Genesis.decode(genesis)
        assert Genesis.decode(genesis).encode() == genesis

    assert SignedOperation.load(wire) is not SignedOperation.load(wire)


def test_a_bad_signature_is_refused_every_time() -> None:
    forged = SignedOperation.load(SIGNED.wire()[:-1] + bytes([SIGNED.wire()[-1] ^ 1]))

    with shared_work():
        for _ in range(2):
            with pytest.raises(BadSignatureError):
                forged.check_signature()
            SIGNED.check_signature()
