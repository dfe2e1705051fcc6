"""`worldstereo doctor`: what is installed, what is missing, and how to install it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from worldstereo_ros.utils.errors import first_line
from worldstereo_ros.weights.bundled import bundled_folder

if TYPE_CHECKING:
    from rich.console import Console

MIN_PYTHON, MAX_PYTHON = (3, 10), (3, 13)
MIN_FREE_DISK_GIB = 1
MAX_ROS_DOMAIN_ID = 232
INSTALL_LIBRARIES = "Run `sudo apt-get install libusb-1.0-0 libgl1 libgomp1 libx11-6`."


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was examined.
        state: what was found.
        ok: whether it can be used.
        fix: what to do if it cannot, as a sentence; empty if it can.
        required: whether the package needs it; otherwise only some commands do.
    """

    name: str
    state: str
    ok: bool
    fix: str = ""
    required: bool = True


class Package(NamedTuple):
    """A Python package to examine.

    Attributes:
        module: name to import.
        distribution: name to install.
        purpose: what it is for, for the report.
        extra: the optional dependencies it belongs to; empty for a required one.
    """

    module: str
    distribution: str
    purpose: str
    extra: str = ""


PACKAGES = (
    Package("numpy", "numpy", "arrays"),
    Package("scipy", "scipy", "rotations, nearest neighbours"),
    Package("torch", "torch", "rendering, models"),
    Package("numba", "numba", "fast memory and rendering on the CPU"),
    Package("cv2", "opencv-python-headless", "images"),
    Package("PIL", "pillow", "image codecs"),
    Package("imageio_ffmpeg", "imageio-ffmpeg", "video files"),
    Package("open3d", "open3d", "point cloud files"),
    Package("safetensors", "safetensors", "weights, saved maps"),
    Package("yaml", "pyyaml", "configuration files"),
    Package("rosbags", "rosbags", "bags without ROS"),
    Package("pytransform3d", "pytransform3d", "transforms without tf2"),
    Package("diffusers", "diffusers", "WorldStereo models"),
    Package("transformers", "transformers", "text, image and depth models"),
    Package("accelerate", "accelerate", "training"),
    Package("viser", "viser", "worldstereo view", "view"),
    Package("onnxruntime", "onnxruntime", "exported models", "export"),
    Package("pycolmap", "pycolmap", "worldstereo reconstruct", "reconstruct"),
    Package("gsply", "gsply", "files of Gaussian splats", "reconstruct"),
    Package("ray", "ray", "worldstereo batch --engine ray", "batch"),
)


def doctor() -> None:
    """Check the installation: list what is there, what is missing and how to fix it.

    The exit status is 1 if something that the package requires is missing.
    """
    from rich.console import Console

    findings = examine()
    print_report(findings, Console())
    raise typer.Exit(0 if all(finding.ok or not finding.required for finding in findings) else 1)


def examine() -> list[Finding]:
    """Examines this machine. Changes nothing and downloads nothing."""
    # Packages warn about, or print, that others are missing; the report says so too.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        packages = [_examine_package(package) for package in PACKAGES]
        small_model, device, ros = _examine_small_model(), _examine_device(), _examine_ros()
    return [_examine_python(), *packages, small_model, device, *ros, _examine_disk()]


def print_report(findings: list[Finding], console: Console) -> None:
    """Prints the findings as a table and what to do about each that is not ok, required ones first."""
    from rich.table import Table

    table = Table("", "what", box=None, pad_edge=False)
    table.add_column("found", overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else ("[red]missing[/]" if finding.required else "[yellow]optional[/]")
        table.add_row(mark, finding.name, finding.state)
    console.print(table)
    problems = sorted((finding for finding in findings if not finding.ok), key=lambda finding: not finding.required)
    if not problems:
        console.print("\n[bold]Everything is installed.[/] Try `worldstereo demo`.")
        return
    console.print("\n[bold]To fix:[/]")
    for finding in problems:
        optional = "" if finding.required else " (optional)"
        console.print(f"  {finding.name}{optional}: {finding.fix}", markup=False, highlight=False, soft_wrap=True)


def _examine_python() -> Finding:
    version = platform.python_version()
    ok = MIN_PYTHON <= sys.version_info[:2] <= MAX_PYTHON
    supported = " to ".join(".".join(map(str, bound)) for bound in (MIN_PYTHON, MAX_PYTHON))
    return Finding("Python", f"{version} in {sys.prefix}", ok, "" if ok else f"Use Python {supported}.")


def _examine_package(package: Package) -> Finding:
    """Imports the package: one that is installed may still lack a library or a package of its own."""
    install = f"pip install '.[{package.extra}]'" if package.extra else f"pip install {package.distribution}"
    fix, required = f"Run `make setup`, or `{install}`.", not package.extra
    try:
        module = importlib.import_module(package.module)
    except Exception as error:  # packages fail on import in many ways
        needed = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else package.module
        if needed != package.module:
            fix = f"Install {needed}, which it needs."
        elif ".so" in str(error):  # a library of the operating system is missing
            fix = INSTALL_LIBRARIES
        return Finding(package.module, f"cannot be imported: {first_line(error)}", False, fix, required)
    try:
        version = importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(module, "__version__", "installed"))
    return Finding(package.module, f"{version} ({package.purpose})", True)


def _examine_small_model() -> Finding:
    """Reads the headers of the bundled model, not its weights."""
    name, fix = "small model", "Install worldstereo_ros again: its folder worldstereo_ros/weights is incomplete."
    folder = bundled_folder("small")
    if not folder.is_dir():
        return Finding(name, f"not in this installation ({folder})", False, fix, required=False)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        from worldstereo_ros.models import inspect_checkpoint, list_variants
    except Exception as error:
        if isinstance(error, ImportError) and not (error.name or "").startswith("worldstereo_ros"):
            fix = "Install the required packages that are missing."
        return Finding(name, f"cannot be examined: {first_line(error)}", False, fix, required=False)
    try:
        variants: list[str | None] = [*list_variants("small")]
        reports = [inspect_checkpoint("small", variant) for variant in variants or [None]]
    except Exception as error:
        return Finding(name, f"cannot be used: {first_line(error)}", False, fix, required=False)
    problems = [problem for report in reports for problem in report.problems]
    if problems:
        return Finding(name, f"cannot be used: {problems[0]}", False, fix, required=False)
    return Finding(name, f"{', '.join(report.variant for report in reports)}, {size / 1e6:.1f} MB in {folder}", True)


def _examine_device() -> Finding:
    try:
        import torch
    except Exception as error:
        return Finding("device", f"torch cannot be imported: {first_line(error)}", False, "Install torch.")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("device", f"cuda: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", True)
    return Finding("device", f"cpu, {os.cpu_count()} cores (no CUDA device; geometric and small need none)", True)


def _examine_ros() -> list[Finding]:
    domain = _examine_ros_domain()
    try:
        import rclpy  # noqa: F401
    except Exception as error:
        fix = "For the node, run `make setup` or source your ROS: `source /opt/ros/$ROS_DISTRO/setup.bash`."
        state = f"rclpy cannot be imported: {first_line(error)}"
        return [Finding("ROS 2", state, False, fix, required=False), domain]
    rmw = os.environ.get("RMW_IMPLEMENTATION", "default middleware")
    ros = Finding("ROS 2", f"rclpy, {os.environ.get('ROS_DISTRO', 'from Python wheels')}, {rmw}", True)
    return [ros, _examine_interfaces(), _examine_tf(), domain]


def _examine_interfaces() -> Finding:
    try:
        from worldstereo_ros.action import ImaginePath  # noqa: F401
    except Exception as error:
        fix = "Run `make setup`, or `colcon build` and `source install/setup.bash`."
        state = f"messages are not built: {first_line(error)}"
        return Finding("interfaces", state, False, fix, required=False)
    return Finding("interfaces", "worldstereo_ros.msg, .srv, .action", True)


def _examine_tf() -> Finding:
    try:
        import tf2_ros  # noqa: F401
    except Exception:
        try:
            from tf2_msgs.msg import TFMessage  # noqa: F401
        except Exception:
            fix = "Install tf2_ros (ros-$ROS_DISTRO-tf2-ros-py) or run `make setup`."
            return Finding("TF", "neither tf2_ros nor tf2_msgs is installed", False, fix, required=False)
        return Finding("TF", "built-in buffer on tf2_msgs (tf2_ros is not installed)", True)
    return Finding("TF", "tf2_ros", True)


def _examine_ros_domain() -> Finding:
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    if not domain.isdecimal() or int(domain) > MAX_ROS_DOMAIN_ID:
        fix = f"Set ROS_DOMAIN_ID to a number from 0 to {MAX_ROS_DOMAIN_ID}."
        return Finding("ROS_DOMAIN_ID", repr(domain), False, fix)
    return Finding("ROS_DOMAIN_ID", domain, True)


def _examine_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    ok = free > MIN_FREE_DISK_GIB
    fix = "" if ok else f"Free some disk space: {MIN_FREE_DISK_GIB} GiB is needed."
    return Finding("disk", f"{free:.1f} GiB free in the current folder", ok, fix)
