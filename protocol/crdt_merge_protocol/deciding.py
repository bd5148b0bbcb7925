"""What administrators have decided for good: ``Decided`` of the view, made to grow as operations arrive."""

from __future__ import annotations

from .view import Decided


class Deciding:
    """Sets that only grow, but for what a REVOKE drops."""

    __slots__ = ("_frozen", "admitted", "banned", "erased", "erased_tags", "erasures", "receipts", "revoked")

    def __init__(self) -> None:
        self.admitted: set[bytes] = set()
        self.revoked: set[bytes] = set()
        self.banned: set[bytes] = set()
        self.erased: set[bytes] = set()
        self.erased_tags: set[bytes] = set()
        self.erasures: set[bytes] = set()
        self.receipts: set[tuple[bytes, bytes]] = set()
        self._frozen: Decided | None = Decided()

    def changed(self) -> None:
        """Note that a set has grown."""
        self._frozen = None

    def freeze(self) -> Decided:
        """Return what is decided; the same object until more is."""
        if self._frozen is None:
            self._frozen = Decided(
                admitted=frozenset(self.admitted),
                revoked=frozenset(self.revoked),
                banned=frozenset(self.banned),
                erased=frozenset(self.erased),
                erased_tags=frozenset(self.erased_tags),
                erasures=frozenset(self.erasures),
                receipts=frozenset(self.receipts),
            )
        return self._frozen

    def copy(self) -> Deciding:
        """Return an independent copy."""
        twin = Deciding()
        twin.admitted, twin.revoked, twin.banned = set(self.admitted), set(self.revoked), set(self.banned)
        twin.erased, twin.erased_tags = set(self.erased), set(self.erased_tags)
        twin.erasures, twin.receipts = set(self.erasures), set(self.receipts)
        twin._frozen = self._frozen
        return twin
