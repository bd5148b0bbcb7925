"""Standing problems of this node: raised once, shown until they end."""

from __future__ import annotations

from .control.model import Alarm, Severity
from .ports import Clock


class Alarms:
    """The alarms that stand, by key. Raising one again keeps the time of the first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._standing: dict[str, Alarm] = {}

    def set(self, key: str, *, severity: Severity, code: str, message: str, hint: str = "") -> bool:
        """Raise or renew an alarm; tell whether it is new."""
        present = self._standing.get(key)
        since = present.since if present else self._clock.now()
        self._standing[key] = Alarm(
            severity=severity.value, code=code, message=message, hint=hint, since=since
        )
        return present is None

    def clear(self, key: str) -> None:
        """End an alarm."""
        self._standing.pop(key, None)

    def standing(self) -> tuple[Alarm, ...]:
        """Return all alarms, the oldest first."""
        return tuple(sorted(self._standing.values(), key=lambda alarm: alarm.since))

    @property
    def is_healthy(self) -> bool:
        """No alarm asks anybody to act."""
        return all(alarm.severity == Severity.WARNING.value for alarm in self._standing.values())
