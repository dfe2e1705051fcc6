"""The interface files agree with the code."""

from __future__ import annotations

import ast
import re

from helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "worldstereo_ros"


def documented_stages() -> set[str]:
    """The stages of the feedback that ImaginePath.action lists."""
    line = re.search(r"^# stage: (.*)\.$", (REPOSITORY / "action" / "ImaginePath.action").read_text(), re.MULTILINE)
    assert line
    return set(re.split(r", | or ", line[1]))


def emitted_stages() -> set[str]:
    """The stages that the world model, the pipelines and the worker pass to `on_step` and `report_progress`."""
    stages: set[str] = set()
    for path in [PACKAGE / "world.py", PACKAGE / "ros" / "node" / "worker.py", *(PACKAGE / "pipelines").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name not in ("on_step", "report_progress"):
                continue
            stage = call.args[0]
            if isinstance(stage, ast.Name) and stage.id == "stage":
                continue  # forwards the stage of its caller
            assert isinstance(stage, ast.Constant), f"{path}:{call.lineno}: the stage is not a literal"
            stages.add(stage.value)
    return stages


def test_action_lists_the_stages_that_are_emitted():
    assert documented_stages() == emitted_stages()
