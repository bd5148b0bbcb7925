"""What the history of real nodes proves, and what it forgives (PROTOCOL R21; SCENARIOS I1, I11)."""

from crdt_merge_simulations.history import Added, DiskLoss, History, Read, Removed, Verdicts

TAG, OTHER = "aa" * 32, "bb" * 32


def _added(*, node: int = 0, acked: float = 1.0) -> Added:
    return Added(node=node, group="g0", slot="s0", tag=TAG, invoked=acked - 0.1, acked=acked)


def _read(node: int, time: float, **states: str) -> Read:
    named = {"tag": TAG, "other": OTHER}
    return Read(
        node=node,
        group="g0",
        invoked=time,
        completed=time + 0.1,
        states={named[name]: state for name, state in states.items()},
    )


def _history(
    *,
    added: tuple[Added, ...] = (),
    removed: tuple[Removed, ...] = (),
    losses: tuple[DiskLoss, ...] = (),
    reads: tuple[Read, ...] = (),
) -> History:
    history = History()
    history.added += added
    history.removed += removed
    history.losses += losses
    history.reads += reads
    return history


def _problems(verdicts: Verdicts) -> tuple[int, int, int]:
    return len(verdicts.lost), len(verdicts.resurrected), len(verdicts.stale)


REMOVED = Removed(node=0, group="g0", tags=(TAG,), acked=2.0)
WIPED = DiskLoss(node=0, time=3.0, since=float("-inf"))


def test_what_everybody_lists_is_in_order() -> None:
    history = _history(added=(_added(),), reads=(_read(0, 2.0, tag="used"),))

    verdicts = history.judge([_read(0, 9.0, tag="used"), _read(1, 9.0, tag="used")])

    assert _problems(verdicts) == (0, 0, 0)


def test_an_acknowledged_contribution_that_nobody_lists_is_lost() -> None:
    verdicts = _history(added=(_added(node=2),)).judge([_read(0, 9.0), _read(1, 9.0)])

    assert _problems(verdicts) == (1, 0, 0)


def test_the_only_disk_may_be_lost_with_what_was_on_it() -> None:
    verdicts = _history(added=(_added(),), losses=(WIPED,)).judge([_read(0, 9.0), _read(1, 9.0)])

    assert _problems(verdicts) == (0, 0, 0)
    assert verdicts.forgiven == 1


def test_what_another_node_had_listed_must_survive_the_loss_of_its_authors_disk() -> None:
    history = _history(added=(_added(),), losses=(WIPED,), reads=(_read(1, 2.0, tag="used"),))

    assert _problems(history.judge([_read(0, 9.0), _read(1, 9.0)])) == (1, 0, 0)


def test_a_backup_forgives_only_what_is_younger_than_it() -> None:
    restored = DiskLoss(node=0, time=3.0, since=1.5)
    final = [_read(0, 9.0), _read(1, 9.0)]

    older = _history(added=(_added(acked=1.0),), losses=(restored,)).judge(final)
    younger = _history(added=(_added(acked=2.0),), losses=(restored,)).judge(final)

    assert len(older.lost) == 1
    assert not younger.lost


def test_a_removed_contribution_that_is_visible_in_the_end_is_resurrected() -> None:
    verdicts = _history(removed=(REMOVED,)).judge([_read(0, 9.0, tag="used"), _read(1, 9.0, tag="used")])

    assert len(verdicts.resurrected) == 2


def test_who_removed_must_never_show_it_again_unless_its_disk_was_lost() -> None:
    again = _read(0, 4.0, tag="used")
    final = [_read(0, 9.0, tag="hidden"), _read(1, 9.0, tag="hidden")]

    kept = _history(removed=(REMOVED,), reads=(again,)).judge(final)
    lost = _history(removed=(REMOVED,), losses=(WIPED,), reads=(again,)).judge(final)

    assert len(kept.resurrected) == 1
    assert not lost.resurrected


def test_who_has_shown_it_gone_must_not_show_it_again() -> None:
    reads = (_read(1, 3.0, tag="hidden"), _read(1, 4.0, tag="used"), _read(2, 4.0, tag="used"))
    final = [_read(0, 9.0, tag="hidden")]

    verdicts = _history(removed=(REMOVED,), reads=reads).judge(final)

    assert len(verdicts.resurrected) == 1
    assert "on n1 at 4.100" in verdicts.resurrected[0]


def test_a_node_that_hides_what_it_acknowledged_is_stale() -> None:
    history = _history(added=(_added(),), reads=(_read(0, 2.0, other="used"),))

    verdicts = history.judge([_read(0, 9.0, tag="used"), _read(1, 9.0, tag="used")])

    assert _problems(verdicts) == (0, 0, 1)


def test_an_answer_that_was_asked_for_before_the_acknowledgement_proves_nothing() -> None:
    history = _history(added=(_added(acked=2.05),), reads=(_read(0, 2.0),))

    assert _problems(history.judge([_read(0, 9.0, tag="used")])) == (0, 0, 0)


def test_calm_nodes_that_differ_are_stale() -> None:
    verdicts = _history().judge([_read(0, 9.0, tag="used"), _read(1, 9.0, tag="hidden")])

    assert _problems(verdicts) == (0, 0, 1)
    assert TAG[:12] in verdicts.stale[0]
