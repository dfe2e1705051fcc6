import re

import pytest
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "worlds:test:1", "--truth"], "remove the other options"),
        (["--data", "worlds:test:1", "--pipeline", "small"], "remove the other options"),
        (["--data", "worlds:test"], "worlds:SPLIT:FIRST:END was expected"),
        (["--data", "recordings/run1"], "names no worlds to explore"),
        (["--data", "worlds:test:9:3"], "names no world: 9 to 3"),
    ],
)
def test_what_cannot_be_explored_is_refused_with_a_sentence(arguments, sentence):
    result = CliRunner().invoke(app, ["evaluate", "--exploration", *arguments])
    assert result.exit_code == 1
    assert sentence in re.sub(r"\s+", " ", result.output)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "worlds:test:1", "--exploration"], "--point-goals and --exploration are different evaluations"),
        (["--data", "worlds:test:1", "--pipeline", "small"], "remove the other options"),
        (["--data", "recordings/run1"], "names no worlds"),
    ],
)
def test_where_there_is_no_point_to_go_to_is_refused_with_a_sentence(arguments, sentence):
    result = CliRunner().invoke(app, ["evaluate", "--point-goals", *arguments])
    assert result.exit_code == 1
    assert sentence in re.sub(r"\s+", " ", result.output)
