"""Evaluation of pipelines on posed sequences with ground truth, beside a baseline.

`run` is what `worldstereo evaluate` calls, `evaluate` the same without output.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldstereo_ros.evaluation.report import Row, format_table, write_json
    from worldstereo_ros.evaluation.runner import evaluate, run

__all__ = ["Row", "evaluate", "format_table", "run", "write_json"]
_MODULES = {"Row": "report", "format_table": "report", "write_json": "report", "evaluate": "runner", "run": "runner"}


def __getattr__(name: str) -> Any:
    # Imported on first use: training takes the metrics alone, on machines without Open3D.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
