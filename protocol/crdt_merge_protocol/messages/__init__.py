"""The peer messages, by subject. Importing this package registers every one of them with the wire."""

from . import bulk as bulk
from . import gossip as gossip
from . import join as join
from . import membership as membership
from . import overlay as overlay
from . import sync as sync
from .base import ControlMessage, DataMessage, Fields, Message

__all__ = ["ControlMessage", "DataMessage", "Fields", "Message"]
