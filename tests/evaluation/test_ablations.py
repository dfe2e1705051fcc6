import pytest

from worldstereo_ros.evaluation.ablations import describe


@pytest.mark.parametrize(
    ("pipeline", "ending"),
    [
        ("small?fill=smooth", ", fill smooth"),
        ("small?compose=false", ", not composed"),
        ("geometric?fill=planes", ", fill planes"),
    ],
)
def test_options_are_named_whatever_their_type(pipeline, ending):
    assert describe(pipeline).title.endswith(ending)
