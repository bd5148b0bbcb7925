"""The comparison with an emulated machine, without one: what it would miss or make twice."""

import pytest
from aarch64 import digests, environment
from aarch64.__main__ import PINNED, differences
from nightly.stages import ROOT


def test_what_differs_or_is_missing_on_either_side_is_named():
    found = differences(
        {"ties": "aa", "slerp": "bb", "linear": "cc"}, {"ties": "aa", "slerp": "bd", "dare": "dd"}
    )

    assert found == [
        "dare: None here, dd on aarch64",
        "linear: cc here, None on aarch64",
        "slerp: bb here, bd on aarch64",
    ]


def test_every_pinned_test_exists():
    for path, _, test in (one.partition("::") for one in PINNED):
        assert f"def {test}(" in (ROOT / path).read_text()


def test_the_formats_have_digests_of_their_own():
    found = digests.formats()

    assert len(set(found.values())) == len(found)
    assert found == digests.formats()


def test_a_folder_is_made_again_if_it_was_cut_off_or_its_inputs_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PLACE", tmp_path)
    made = []

    def make(place):
        assert list(place.iterdir()) == []
        (place / "half").touch()
        made.append(place.name)
        if len(made) == 1:
            raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        environment._make("site", "numpy==2", make)
    environment._make("site", "numpy==2", make)
    environment._make("site", "numpy==2", make)
    assert len(made) == 2

    environment._make("site", "numpy==3", make)
    assert len(made) == 3
