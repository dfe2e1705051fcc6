"""Inputs of an evaluation: the sequences, pipelines and depth estimator that its arguments name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from worldstereo_ros.depth.estimators import SMALL, DepthEstimator, load_depth_estimator
from worldstereo_ros.evaluation.pipeline_options import Pipelines
from worldstereo_ros.evaluation.world_sequences import PosedSequence, open_data
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.view_sequence import ViewSequence


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
    on_note: Callable[[str], None] | None = None,
) -> Inputs:
    """Opens the inputs of an evaluation; for the arguments see `runner.evaluate`.

    Raises:
        DatasetError: no frame of a sequence can be read.
        InputError: a pipeline or sequence is unknown or unsuitable.
    """
    names = list(dict.fromkeys(pipelines))
    sequences = [sequence for one in data for sequence in open_whole(one, on_note)]
    loaded = Pipelines(names, device)
    estimator = load_depth_estimator(depth_model or SMALL, device) if "mono" in protocols else None
    return Inputs(sequences, names, loaded, estimator)


def open_whole(
    data: str | Path | PosedSequence, on_note: Callable[[str], None] | None = None, *, needs_depth: bool = True
) -> list[PosedSequence]:
    """Opens the sequences of one `--data` option without their damaged frames.

    Args:
        data, needs_depth: see `world_sequences.open_data`.
        on_note: called with a sentence for each sequence of which frames are left out.

    Raises:
        InputError: the data is none that `open_data` opens.
        DatasetError: no frame of a sequence can be read.
    """
    return [without_damaged(sequence, on_note) for sequence in open_data(data, needs_depth=needs_depth)]


def without_damaged(sequence: PosedSequence, on_note: Callable[[str], None] | None = None) -> PosedSequence:
    """The sequence without the frames that cannot be read; only a recorded one can have some.

    All frames are read for this, because which of them are observed and which are held out follows from their number.

    Args:
        sequence: any.
        on_note: called with a sentence if frames are left out.

    Raises:
        DatasetError: no frame can be read.
    """
    if not isinstance(sequence, ViewSequence):
        return sequence
    whole, reasons = [], []
    for index in range(len(sequence)):
        try:
            sequence[index]
        except DatasetError as error:
            reasons.append(str(error))
        else:
            whole.append(index)
    if not reasons:
        return sequence
    if not whole:
        raise DatasetError(f"None of the {len(reasons)} frames of {sequence.path} can be read. The first: {reasons[0]}")
    if on_note:
        on_note(
            f"{sequence.path.name}: {len(reasons)} of {len(sequence)} frames are damaged and left out. The first: "
            f"{reasons[0]}"
        )
    return sequence.subset(whole)
