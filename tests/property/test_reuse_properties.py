"""Whatever changed since the last resolve, one that takes tensors over from it equals a fresh one."""

import tempfile
from dataclasses import replace
from pathlib import Path

from crdt_merge_node.ports import SystemFs
from crdt_merge_protocol.strategies.registry import get
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples
from support.resolves import FLOATS, Group, account_of, bytes_of, model

VARIANTS = (
    ("weight_average", {}),
    ("linear", {"normalize": "false"}),
    ("task_arithmetic", {}),
    ("slerp", {}),
    ("nuslerp", {}),
    ("ties", {}),
    ("ties", {"scope": "tensor"}),
    ("ties", {"scope": "tensor", "profile": "mergekit", "density": "0.5"}),
    ("dare", {}),
    ("dare", {"seed_scope": "contribution"}),
    ("dare_ties", {"seed_scope": "contribution", "rescale": "l1", "ties_density": "0.5"}),
    ("della", {"seed_scope": "contribution"}),
    ("della_linear", {"rescale": "l1"}),
    ("model_breadcrumbs", {"profile": "mergekit", "density": "0.5"}),
    ("breadcrumbs_ties", {"profile": "mergekit", "density": "0.5"}),
    ("sce", {"select_topk": "0.5"}),
    ("ramplus_tl", {}),
    ("arcee_fusion", {}),
    ("coordinate_median", {}),
    ("geometric_median", {"scope": "tensor"}),
    ("norm_clipped_mean", {"scope": "tensor"}),
    ("weight_scope_alignment", {"mode": "posthoc_affine"}),
    ("star", {}),
    ("svd_truncated_ta", {}),
    ("emr_merging", {}),
)
PATTERNS = {
    "weight": ("1", "a.*=2;1", "a.*=0;1", "*.bias=3;1"),
    "density": ("0.5", "a.*=0.25;0.5", "c*=1;0.5"),
    "lambda": ("1", "b.*=0.5;1", "*=0.5;1"),
}


@st.composite
def edits(draw, group):
    """A group a little later."""
    models = list(group.models)
    which = draw(st.integers(0, len(models) - 1))
    kinds = ("tensor", "tensor", "base", "weight", "weight", "add", "remove", "parameter", "type", "shards")
    kind = draw(st.sampled_from(kinds))
    if kind == "tensor":
        models[which] = models[which].changed(draw(st.sampled_from(FLOATS)), draw(st.integers(0, 50)))
    elif kind == "base":
        return replace(
            group, base=group.base.changed(draw(st.sampled_from(FLOATS)), draw(st.integers(51, 60)))
        )
    elif kind == "weight":
        models[which] = replace(models[which], weight=draw(st.integers(1, 5)))
    elif kind == "add":
        models.append(model(draw(st.integers(0, 6)), draw(st.integers(1, 3))))
    elif kind == "remove" and len(models) > 1:
        del models[which]
    elif kind == "type":
        return replace(group, dtype=draw(st.sampled_from(("", "F16", "BF16"))))
    elif kind == "shards":
        return replace(group, shard_bytes=0 if group.shard_bytes else 64)
    elif kind == "parameter":
        known = sorted(PATTERNS.keys() & declared(group.strategy))
        if known:
            name = draw(st.sampled_from(known))
            return replace(group, params={**group.params, name: draw(st.sampled_from(PATTERNS[name]))})
    return replace(group, models=tuple(models))


def declared(strategy):
    """Return which parameters may be set; a share of the whole model cannot differ by tensor."""
    found = {each.name for each in get(strategy).parameters}
    return found - {"density"} if strategy in ("ties", "della", "della_linear") else found


@st.composite
def histories(draw):
    strategy, params = draw(st.sampled_from(VARIANTS))
    models = tuple(model(seed) for seed in draw(st.lists(st.integers(0, 6), min_size=2, max_size=4)))
    groups = [Group(strategy, models, params)]
    for _ in range(draw(st.integers(2, 4))):
        groups.append(draw(edits(groups[-1])))
    return groups


@examples(40)
@given(groups=histories())
def test_what_is_taken_over_is_what_would_be_computed(groups):
    fs = SystemFs()
    with tempfile.TemporaryDirectory() as name:
        room, earlier = Path(name), None
        for number, group in enumerate(groups):
            # One place for files and one for directories; the one before may be the one that is replaced.
            output = room / ("shards" if group.shard_bytes else "file")
            result = group.resolve(output, fs=fs, earlier=earlier)
            fresh = group.resolve(room / f"fresh{number}", fs=fs)
            earlier = output

            assert bytes_of(result) == bytes_of(fresh)
            assert result.output_digest == fresh.output_digest
            assert result.warnings == fresh.warnings
            assert account_of(result) == account_of(fresh)
            assert fresh.reused_tensors == 0
