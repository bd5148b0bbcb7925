"""Reading the fields of a canonical list, each with its type and range.

Messages, operation bodies, manifests and policies are all lists of fields. Whoever reads them through
:class:`Fields` holds only values within their limits, and raises nothing but :class:`RemoteProtocolError`.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

from .canonical import is_name
from .errors import LimitExceededError, MalformedMessageError
from .limits import CONTROL_BODY_BYTES_MAX

U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1


class Fields:
    """Reads the fields of a control body in order, each with its type and range."""

    def __init__(self, values: Any, *, what: str) -> None:
        if not isinstance(values, list):
            raise MalformedMessageError(f"{what}: a list of fields was expected.")
        self._values = values
        self._position = 0
        self._what = what

    def _next(self) -> Any:
        if self._position >= len(self._values):
            raise MalformedMessageError(f"{self._what}: {len(self._values)} fields are too few.")
        self._position += 1
        return self._values[self._position - 1]

    def _refuse(self, expected: str) -> MalformedMessageError:
        return MalformedMessageError(f"{self._what}: field {self._position - 1} is not {expected}.")

    def integer(self, *, low: int = 0, high: int = U64_MAX) -> int:
        """Return an integer within ``low <= n <= high``."""
        value = self._next()
        if type(value) is not int or not low <= value <= high:
            raise self._refuse(f"an integer in {low}..{high}")
        return value

    def boolean(self) -> bool:
        """Return a boolean."""
        value = self._next()
        if type(value) is not bool:
            raise self._refuse("a boolean")
        return value

    def blob(self, *, size: int | None = None, size_max: int = CONTROL_BODY_BYTES_MAX) -> bytes:
        """Return bytes, of exactly ``size`` if given, else of at most ``size_max``."""
        value = self._next()
        if type(value) is not bytes or len(value) > size_max or (size is not None and len(value) != size):
            raise self._refuse(f"{size} bytes" if size is not None else f"at most {size_max} bytes")
        return value

    def id(self) -> bytes:
        """Return a 32-byte id."""
        return self.blob(size=32)

    def optional_id(self) -> bytes | None:
        """Return a 32-byte id, or None."""
        if self._position < len(self._values) and self._values[self._position] is None:
            self._position += 1
            return None
        return self.id()

    def text(self, *, size_max: int = 1024) -> str:
        """Return UTF-8 text of at most ``size_max`` characters."""
        value = self._next()
        if type(value) is not str or len(value) > size_max:
            raise self._refuse(f"text of at most {size_max} characters")
        return value

    def name(self) -> str:
        """Return a name that groups, slots, types and tensors may have."""
        value = self._next()
        if not is_name(value):
            raise self._refuse("a name ([A-Za-z0-9._/-], at most 200, no '..')")
        return str(value)

    def items(self, *, count_max: int) -> list[Any]:
        """Return a list of at most ``count_max`` unchecked items."""
        value = self._next()
        if not isinstance(value, list):
            raise self._refuse("a list")
        if len(value) > count_max:
            raise LimitExceededError(f"{self._what}: {len(value)} items, at most {count_max} are read.")
        return value

    def ids(self, *, count_max: int) -> tuple[bytes, ...]:
        """Return at most ``count_max`` 32-byte ids."""
        values = self.items(count_max=count_max)
        for value in values:
            if type(value) is not bytes or len(value) != 32:
                raise self._refuse("a list of 32-byte ids")
        return tuple(values)

    def sorted_ids(self, *, count_max: int, count_min: int = 0) -> tuple[bytes, ...]:
        """Return 32-byte ids that are sorted and unique, so that a set of ids has one encoding."""
        ids = self.ids(count_max=count_max)
        if len(ids) < count_min or any(first >= second for first, second in itertools.pairwise(ids)):
            raise MalformedMessageError(f"{self._what}: a set of ids is empty, not sorted or not unique.")
        return ids

    def records(self, *, count_max: int) -> list[Fields]:
        """Return a list of at most ``count_max`` nested records, each to be read in turn."""
        return [Fields(value, what=self._what) for value in self.items(count_max=count_max)]

    @property
    def is_at_end(self) -> bool:
        """Whether all fields were read."""
        return self._position == len(self._values)

    def end(self) -> None:
        """Refuse fields beyond those read."""
        if self._position != len(self._values):
            raise MalformedMessageError(f"{self._what}: {len(self._values)} fields are too many.")
