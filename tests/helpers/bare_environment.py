"""A Python with few packages, as on a machine where nothing can be installed."""

import importlib.metadata
import os
import re
import sys
from pathlib import Path

# What a lent GPU machine has, and diffusers, which is carried along; pillow is needed by diffusers.
PACKAGES = ("torch", "numba", "opencv-python-headless", "scipy", "safetensors", "accelerate", "transformers", "typer",
            "rich", "diffusers", "pillow")  # fmt: skip


def required(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The packages of these names that are installed, and what they need, without extras."""
    found: dict[str, importlib.metadata.Distribution] = {}
    pending = list(names)
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in found[name].requires or []:
            if "extra ==" not in line:
                pending.append(re.match(r"[\w.-]+", line).group())
    return found


def bare_python(folder: Path) -> tuple[str, dict[str, str]]:
    """An interpreter and its environment, which sees `PACKAGES` and what they need, through links in a folder."""
    for distribution in required(PACKAGES).values():
        for file in distribution.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return sys._base_executable, environment | {"PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1"}
