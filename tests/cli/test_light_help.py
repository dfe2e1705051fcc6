"""`--help` of every command imports nothing heavy, and the help names what can be chosen."""

import subprocess
import sys

import pytest
import typer
from helpers.paths import REPOSITORY
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.cli.train import ALL, COMMANDS

HEAVY = ("torch", "numpy", "cv2", "open3d", "diffusers", "transformers", "scipy", "numba", "rclpy", "viser")

PRINT_HELP = """
import sys
from worldstereo_ros.cli.main import main

sys.argv = ["worldstereo", *{arguments!r}, "--help"]
try:
    main()
except SystemExit as end:
    status = end.code or 0
loaded = sorted({heavy!r} & set(sys.modules))
print("status", status, "loaded", loaded)
"""


def walk(command, path=()):
    """The words of a command and of all commands below it."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


PATHS = list(walk(typer.main.get_command(app)))


def test_all_commands_are_found():
    assert () in PATHS
    assert {("demo",), ("imagine",), ("doctor",), ("train",), ("train", "all"), ("train", "package")} <= set(PATHS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: " ".join(path) or "worldstereo")
def test_help_imports_nothing_heavy(path):
    program = PRINT_HELP.format(arguments=list(path), heavy=set(HEAVY))
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: worldstereo" in done.stdout
    assert done.stdout.splitlines()[-1] == "status 0 loaded []"


def help_of(*path):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}, terminal_width=200)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.replace("│", " ").split())


def test_every_option_has_help():
    def parameters(command):
        yield from command.params
        for child in getattr(command, "commands", {}).values():
            yield from parameters(child)

    missing = [parameter.name for parameter in parameters(typer.main.get_command(app)) if not parameter.help]
    assert missing == []


def test_help_names_what_can_be_chosen():
    from worldstereo_ros.evaluation.protocols import PROTOCOLS
    from worldstereo_ros.export.onnx import ATTENTIONS, DTYPES, PARTS
    from worldstereo_ros.geometry.trajectories import TRAJECTORIES
    from worldstereo_ros.pipelines import auto
    from worldstereo_ros.scenes import KINDS

    assert all(kind in help_of("demo") for kind in KINDS)
    assert all(name in help_of("imagine") for name in (*TRAJECTORIES, *auto.NAMES, *auto.DTYPES))
    assert all(protocol in help_of("evaluate") for protocol in PROTOCOLS)
    assert all(name in help_of("export") for name in (*PARTS, *DTYPES, *ATTENTIONS))


def test_train_has_a_command_for_every_stage():
    from worldstereo_ros.training.config import STAGES

    assert tuple(COMMANDS) == (ALL, *STAGES)
