"""Making and checking artefacts: what some strategies need besides models, computed where the data is.

The formats are specified in ``crdt_merge_protocol.strategies.artefact_checks``. ``fisher`` and ``gram``
reduce a user's own gradients and activations, from files of any size; ``headers`` makes what has no tensors;
``files`` writes, reads and judges artefact files. ``example`` trains a small model and merges with both.
"""
