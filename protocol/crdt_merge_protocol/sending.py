"""What the parts of the engine want said and done, as effects for the driver."""

from __future__ import annotations

from collections.abc import Iterable

from .active_view import Close, Tell
from .address_book import Dial
from .events import DialPeer, Disconnect, Effect, Lane, Send
from .messages.base import Message
from .messages.membership import peers_messages
from .overlay import Action, Overlay


def sends(outgoing: Iterable[tuple[bytes, Message]], lane: Lane) -> list[Effect]:
    """Return the effects that send messages, each to its peer."""
    return [Send(peer=peer, message=message, lane=lane) for peer, message in outgoing]


def perform(actions: Iterable[Action]) -> list[Effect]:
    """Return the effects that do what the overlay wants."""
    effects: list[Effect] = []
    for action in actions:
        match action:
            case Tell():
                effects.append(Send(peer=action.peer, message=action.message, lane=Lane.MEMBERSHIP))
            case Dial():
                effects.append(DialPeer(dial=action))
            case Close():
                effects.append(Disconnect(peer=action.peer, code="", reason=action.reason, is_routine=True))
    return effects


def introduce(overlay: Overlay, peer: bytes, known: tuple[str, ...]) -> list[Effect]:
    """Tell a new peer of all others, and all others of it: in a full mesh all know all.

    Args:
        overlay: Who is here.
        peer: The new one.
        known: Where it answers.
    """
    others = [(node, addresses) for node, addresses in overlay.introductions() if node != peer]
    told: list[tuple[bytes, Message]] = [(peer, message) for message in peers_messages(others)]
    told += [
        (other, message)
        for message in peers_messages([(peer, known)] if known else [])
        for other in sorted(overlay.active - {peer})
    ]
    return sends(told, Lane.MEMBERSHIP)
