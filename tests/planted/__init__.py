"""Planted bugs: the simulator must see what it is there to see. ``make nightly STAGE=planted``.

Each file in ``bugs/`` is a patch of one control of the real code, with the scenario that must bring it to
light and the invariants that must say so. ``python -m tests.planted NAME...`` hunts them over seeds 1..200.
"""
