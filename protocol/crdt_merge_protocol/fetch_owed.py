"""What is asked of whom and not yet written: flights, and pieces that are being judged (PROTOCOL 5).

A *flight* is one piece asked of one provider. ``FetchPlanner`` decides; this keeps count.
"""

from __future__ import annotations

from .fetch_items import Flight, Item, Provider, Wanted


class Owed:
    """Providers and items with the flights between them."""

    def __init__(self) -> None:
        self.providers: dict[bytes, Provider] = {}
        self.items: dict[Item, Wanted] = {}
        self.nbytes = 0
        """In flight or being judged, over all providers."""
        self.duplicates = 0
        """Flights of pieces that somebody else owes as well."""

    def launch(self, provider: bytes, item: Item, piece: int, *, now: float) -> None:
        """Begin a flight."""
        known, wanted = self.providers[provider], self.items[item]
        if not known.flights:
            known.progress_at = now
        cost = wanted.cost(piece)
        known.flights[item, piece] = Flight(now, cost)
        known.window.on_sent(cost)
        self.nbytes += cost
        wanted.flights.setdefault(piece, []).append(provider)
        wanted.taken |= 1 << piece

    def drop(self, provider: bytes, item: Item, piece: int, *, answered_at: float | None = None) -> None:
        """End a flight, if there is one: answered, or no longer waited for."""
        known = self.providers[provider]
        flight = known.flights.pop((item, piece), None)
        if flight is None:
            return
        self.nbytes -= flight.cost
        if answered_at is None:
            known.window.on_dropped(flight.cost)
        else:
            known.window.on_answered(flight.cost, sent_at=flight.sent_at, now=answered_at)
        wanted = self.items[item]
        owners = wanted.flights[piece]
        owners.remove(provider)
        if owners:
            self.duplicates -= 1
            return
        del wanted.flights[piece]
        if piece not in wanted.held:
            wanted.taken &= ~(1 << piece)

    def forfeit(self, provider: bytes) -> None:
        """End all flights of a provider; its pieces are free to be asked of others."""
        for item, piece in tuple(self.providers[provider].flights):
            self.drop(provider, item, piece)

    def hold(self, wanted: Wanted, piece: int) -> None:
        """Count a piece that has come until it is written or refused."""
        cost = wanted.cost(piece)
        wanted.held[piece] = cost
        wanted.taken |= 1 << piece
        self.nbytes += cost

    def release(self, wanted: Wanted, piece: int) -> None:
        """Count a piece no longer that was written or refused."""
        self.nbytes -= wanted.held.pop(piece, 0)
        if piece not in wanted.flights:
            wanted.taken &= ~(1 << piece)
