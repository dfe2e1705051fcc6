"""Measuring pipelines on real sequences, always beside the baseline. `run` is what `worldstereo evaluate` calls."""

from worldstereo_ros.evaluation.report import Row, format_table, write_json
from worldstereo_ros.evaluation.runner import evaluate, run

__all__ = ["Row", "evaluate", "format_table", "run", "write_json"]
