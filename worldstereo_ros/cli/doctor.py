"""`worldstereo doctor`: what is installed, what is missing, and the one thing to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from worldstereo_ros.weights.bundled import bundled_folder


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` is the one thing to do, empty where all is well."""

    name: str
    state: str
    ok: bool
    fix: str = ""
    needed: bool = True


PIP = "Run `make setup`, or `pip install '.[view,export]'`."
# (module, distribution, what it is for, needed by the core)
PACKAGES = (
    ("numpy", "numpy", "arrays", True),
    ("scipy", "scipy", "rotations", True),
    ("torch", "torch", "rendering and models", True),
    ("numba", "numba", "fast memory and rendering on the CPU", True),
    ("cv2", "opencv-python-headless", "pictures", True),
    ("open3d", "open3d", "clouds to PLY and PCD", True),
    ("safetensors", "safetensors", "weights and saved maps", True),
    ("rosbags", "rosbags", "bags without ROS", True),
    ("pytransform3d", "pytransform3d", "transforms without tf2", True),
    ("diffusers", "diffusers", "the WorldStereo model", True),
    ("transformers", "transformers", "text, image and depth models", True),
    ("viser", "viser", "worldstereo view", False),
    ("onnxruntime", "onnxruntime", "exported models", False),
)


def examine() -> list[Finding]:
    """Looks at this machine. Changes nothing, downloads nothing."""
    packages = [_package(*package) for package in PACKAGES]
    return [_python(), *packages, _small_model(), _device(), *_ros(), _domain(), _disk()]


def _python() -> Finding:
    version = platform.python_version()
    ok = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", f"{version} in {sys.prefix}", ok, "" if ok else "Use Python 3.10 to 3.13.")


def _package(module: str, distribution: str, purpose: str, needed: bool) -> Finding:
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        fix = PIP
        if ".so" in str(error):  # the package is there, a library of the system is not
            fix = "Run: sudo apt-get install libusb-1.0-0 libgl1 libgomp1 libx11-6"
        return Finding(module, f"cannot be imported: {error}", False, fix, needed)
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(importlib.import_module(module), "__version__", "present"))
    return Finding(module, f"{version} ({purpose})", True)


def _small_model() -> Finding:
    """The model that comes with the package; its headers are read, its weights are not."""
    name, fix = "small model", "Install worldstereo_ros again: its folder worldstereo_ros/weights is not whole."
    folder = bundled_folder("small")
    if not folder.is_dir():
        return Finding(name, f"not in this installation ({folder})", False, fix, needed=False)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        from worldstereo_ros.models import inspect_checkpoint, list_variants

        variants: list[str | None] = [*list_variants("small")]
        reports = [inspect_checkpoint("small", variant) for variant in variants or [None]]
    except (ImportError, OSError, ValueError) as error:
        return Finding(name, f"cannot be used: {error}", False, fix, needed=False)
    problems = [problem for report in reports for problem in report.problems]
    if problems:
        return Finding(name, f"cannot be used: {problems[0]}", False, fix, needed=False)
    return Finding(name, f"{', '.join(report.variant for report in reports)}, {size / 1e6:.1f} MB in {folder}", True)


def _device() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("device", "torch is missing", False, PIP)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("device", f"cuda: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", True)
    return Finding("device", f"cpu, {os.cpu_count()} cores (no CUDA device; geometric and small need none)", True)


def _ros() -> list[Finding]:
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        fix = "For the node: run `make setup`, or source your ROS (`source /opt/ros/$ROS_DISTRO/setup.bash`)."
        return [Finding("ROS 2", f"rclpy cannot be imported: {error}", False, fix, needed=False)]
    rmw = os.environ.get("RMW_IMPLEMENTATION", "the default middleware")
    findings = [Finding("ROS 2", f"rclpy is there, {os.environ.get('ROS_DISTRO', 'from Python wheels')}, {rmw}", True)]
    try:
        from worldstereo_ros.action import ImaginePath  # noqa: F401
    except ImportError as error:
        fix = "Run `make setup`, or `colcon build` and `source install/setup.bash`."
        findings.append(Finding("interfaces", f"our messages are not built: {error}", False, fix, needed=False))
    else:
        findings.append(Finding("interfaces", "worldstereo_ros.msg, .srv, .action", True))
    try:
        import tf2_ros  # noqa: F401
    except ImportError:
        try:
            from tf2_msgs.msg import TFMessage  # noqa: F401
        except ImportError:
            fix = "Install tf2_ros (ros-$ROS_DISTRO-tf2-ros-py) or run `make setup`."
            findings.append(Finding("TF", "neither tf2_ros nor tf2_msgs is there", False, fix, needed=False))
        else:
            findings.append(Finding("TF", "own buffer on tf2_msgs (tf2_ros is not installed)", True))
    else:
        findings.append(Finding("TF", "tf2_ros", True))
    return findings


def _domain() -> Finding:
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    if not domain.isdigit() or not 0 <= int(domain) <= 232:
        return Finding("ROS_DOMAIN_ID", repr(domain), False, "Set ROS_DOMAIN_ID to a number from 0 to 232.")
    return Finding("ROS_DOMAIN_ID", domain, True)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(
        "disk", f"{free:.1f} GiB free here", free > 1, "" if free > 1 else "Free some room: 1 GiB is needed."
    )


def print_report() -> bool:
    """Prints the findings and the first thing to fix. Returns whether everything the core needs is there."""
    from rich.console import Console
    from rich.table import Table

    findings = examine()
    table = Table("", "what", "found", box=None, pad_edge=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else ("[red]missing[/]" if finding.needed else "[yellow]absent[/]")
        table.add_row(mark, finding.name, finding.state)
    console = Console()
    console.print(table)
    broken = sorted((f for f in findings if not f.ok), key=lambda f: not f.needed)
    if broken:
        console.print(f"\n[bold]Do this next:[/] {broken[0].fix}")
    else:
        console.print("\n[bold]All is there.[/] Try `worldstereo demo`.")
    return not any(f.needed for f in broken)
