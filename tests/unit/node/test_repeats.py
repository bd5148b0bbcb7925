"""What repeats is said once a minute, with a count (STYLE 4.5)."""

from crdt_merge_node.repeats import INTERVAL_S, KEYS_MAX, Repeats


class Clock:
    time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def test_the_first_is_said_and_the_next_only_after_a_minute_with_their_count() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    counts = []
    for _ in range(150):
        counts.append(repeats.count("key"))
        clock.time += 1.0

    assert [(at, count) for at, count in enumerate(counts) if count] == [(0, 1), (60, 60), (120, 60)]


def test_what_differs_is_counted_apart() -> None:
    repeats = Repeats(Clock())

    assert [repeats.count(key) for key in ("one", "other", "one")] == [1, 1, 0]


def test_a_flood_of_ever_new_things_shares_one_key() -> None:
    """A log is not what an attacker may fill."""
    clock = Clock()
    repeats = Repeats(clock)
    said = sum(bool(repeats.count(number)) for number in range(10 * KEYS_MAX))
    clock.time += INTERVAL_S

    assert said <= KEYS_MAX + 1
    assert repeats.count("new") == 1, "what is old makes room"
