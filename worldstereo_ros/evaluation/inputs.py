"""Inputs of an evaluation: the sequences, pipelines and depth estimator that its arguments name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from worldstereo_ros.depth.estimators import SMALL, DepthEstimator, load_depth_estimator
from worldstereo_ros.evaluation.pipeline_options import Pipelines
from worldstereo_ros.evaluation.world_sequences import PosedSequence, open_data


class Inputs(NamedTuple):
    """What an evaluation runs on.

    Attributes:
        sequences: the posed sequences, in order.
        names: the pipelines and baselines, each once.
        pipelines: the loaded pipelines, by name.
        estimator: depth estimator for the protocol mono; None without this protocol, or if there is none.
    """

    sequences: list[PosedSequence]
    names: list[str]
    pipelines: Pipelines
    estimator: DepthEstimator | None


def open_inputs(
    data: Sequence[str | Path | PosedSequence],
    protocols: Sequence[str],
    pipelines: Sequence[str],
    depth_model: str,
    device: str,
) -> Inputs:
    """Opens the inputs of an evaluation; for the arguments see `runner.evaluate`.

    Raises:
        InputError: a pipeline or sequence is unknown or unsuitable.
    """
    names = list(dict.fromkeys(pipelines))
    sequences = [sequence for one in data for sequence in open_data(one)]
    loaded = Pipelines(names, device)
    estimator = load_depth_estimator(depth_model or SMALL, device) if "mono" in protocols else None
    return Inputs(sequences, names, loaded, estimator)
