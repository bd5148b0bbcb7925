"""The window of one provider: rules 1 to 4 of its docstring."""

from __future__ import annotations

from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.window import Window


def answer_window(window: Window, *, latency_s: float, now: float) -> None:
    """Fill the window with chunks and answer them all ``latency_s`` later."""
    count = 0
    while window.has_room:
        window.on_sent(MIB)
        count += 1
    for _ in range(count):
        window.on_answered(MIB, sent_at=now, now=now + latency_s)


def test_a_window_takes_requests_until_it_is_full() -> None:
    window = Window()
    sent = 0
    while window.has_room:
        window.on_sent(MIB)
        sent += 1

    assert sent == 4


def test_quick_answers_to_a_full_window_widen_it_by_a_chunk_a_window_up_to_32_mib() -> None:
    window = Window()
    sizes = []
    for _ in range(1000):
        while window.has_room:
            window.on_sent(MIB)
        window.on_answered(MIB, sent_at=0.0, now=0.01)
        sizes.append(window.size_bytes)

    assert 4.8 * MIB < sizes[3] <= 5 * MIB
    assert sizes[-1] == 32 * MIB


def test_answers_to_a_window_that_was_hardly_used_do_not_widen_it() -> None:
    window = Window()
    for turn in range(10):
        window.on_sent(MIB)
        window.on_answered(MIB, sent_at=float(turn), now=turn + 0.01)

    assert window.size_bytes == 4 * MIB


def test_one_queue_of_slow_answers_halves_the_window_once_and_the_next_queue_again() -> None:
    window = Window()
    answer_window(window, latency_s=2.0, now=0.0)
    after_one = window.size_bytes
    answer_window(window, latency_s=2.0, now=2.5)

    assert after_one == 2 * MIB
    assert window.size_bytes == 1 * MIB


def test_a_window_never_closes() -> None:
    window = Window()
    for turn in range(20):
        answer_window(window, latency_s=30.0, now=turn * 40.0)
    window.on_stall()

    assert window.size_bytes == MIB
    assert window.has_room


def test_a_dropped_request_makes_room_and_teaches_nothing() -> None:
    window = Window()
    window.on_sent(4 * MIB)
    window.on_dropped(4 * MIB)

    assert window.owed_bytes == 0
    assert window.size_bytes == 4 * MIB
