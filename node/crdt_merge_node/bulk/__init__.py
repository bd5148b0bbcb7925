"""Moving objects and blobs between nodes, over connections of their own (PROTOCOL 5).

Start with ``fetcher.py``: what is wanted, and until when. ``pickup.py`` takes a want through its steps;
``exchange.py`` asks peers as the planner in ``crdt_merge_protocol.fetch`` decides; ``serve.py`` is the other
end of the line. Received bytes are verified in ``landing.py`` before they are kept.
"""

from .fetcher import Fetcher
from .serve import BulkServer
from .wants import Missing, Progress

__all__ = ["BulkServer", "Fetcher", "Missing", "Progress"]
