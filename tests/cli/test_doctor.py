"""`worldstereo doctor`, with everything installed and with packages missing."""

import functools
import os
import re
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

from worldstereo_ros.cli.doctor import PACKAGES, examine

UNRELATED = ("diffusers", "open3d", "numba")
HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
sys.argv = ["worldstereo", "doctor"]
from worldstereo_ros.cli.main import main
main()
"""


@functools.cache
def run_doctor_without(*modules):
    """Runs `worldstereo doctor` in a process in which modules cannot be imported; returns its status and report."""
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HIDE.format(modules=modules)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("module", "fix"),
    [
        ("torch", "torch: Run `make setup`, or `pip install torch`."),
        ("diffusers", "diffusers: Run `make setup`, or `pip install diffusers`."),
        ("open3d", "open3d: Run `make setup`, or `pip install open3d`."),
        ("numpy", "numpy: Run `make setup`, or `pip install numpy`."),
        ("numba", "numba: Run `make setup`, or `pip install numba`."),
    ],
)
def test_doctor_fails_and_says_how_to_install_a_required_package(module, fix):
    # Those on which no other package depends are hidden at once: a process that imports all packages takes long.
    status, report = run_doctor_without(*(UNRELATED if module in UNRELATED else [module]))
    assert status == 1, report
    (finding,) = (line for line in report.splitlines() if re.match(rf"missing +{module} ", line))
    assert f"cannot be imported: No module named '{module}'" in finding
    assert fix in report[report.index("To fix:") :]
    if module == "torch":
        assert "diffusers: Install torch, which it needs." in report


@pytest.mark.parametrize(
    ("module", "name", "fix"),
    [
        ("rclpy", "ROS 2", "ROS 2 (optional): For the node, run `make setup` or source your ROS"),
        ("viser", "viser", "viser (optional): Run `make setup`, or `pip install '.[view]'`."),
    ],
)
def test_doctor_passes_without_an_optional_package(module, name, fix):
    status, report = run_doctor_without("rclpy", "viser")
    assert status == 0, report
    (finding,) = (line for line in report.splitlines() if re.match(rf"optional +{name} ", line))
    assert f"No module named '{module}'" in finding
    assert fix in report[report.index("To fix:") :]


def test_every_finding_that_is_not_ok_has_a_fix():
    findings = {finding.name: finding for finding in examine()}
    assert findings["torch"].ok
    assert findings["numba"].ok
    assert all(finding.ok or finding.fix for finding in findings.values())


def test_doctor_examines_every_required_dependency():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = {dependency.split(">")[0].split("=")[0] for dependency in project["dependencies"]}
    examined = {package.distribution for package in PACKAGES if not package.extra}
    assert examined <= required
    assert required - examined == {"typer", "rich", "imageio"}  # the doctor itself runs on the first two
