"""Evaluates what views say of their pixels: `worldstereo evaluate --truth`, see `truth`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from worldstereo_ros.evaluation.baseline import BASELINES
from worldstereo_ros.evaluation.inputs import open_inputs
from worldstereo_ros.evaluation.output import note_printer, prefixed, print_table, row_recorder
from worldstereo_ros.evaluation.protocols import PROTOCOLS, make_scenario, repeated
from worldstereo_ros.evaluation.scoring import imagined_views
from worldstereo_ros.evaluation.truth import (
    TruthRow,
    TruthScorer,
    find_seen,
    truth_line,
    truth_table,
    write_truth,
)
from worldstereo_ros.evaluation.world_sequences import PosedSequence
from worldstereo_ros.utils.errors import InputError

TRUTH_PROTOCOLS = ("single", "sparse", "mono", "revisit")  # by default
REQUESTS = 3  # of the same views with `remember`; the last is evaluated


def run_truth(
    data: Sequence[str | Path],
    protocols: Sequence[str] = TRUTH_PROTOCOLS,
    pipelines: Sequence[str] = ("geometric",),
    *,
    json_file: Path | None = None,
    remember: bool = False,
    every: int = 1,
    depth_model: str = "",
    device: str = "cpu",
) -> list[TruthRow]:
    """Evaluates and prints the table; `worldstereo evaluate --truth` calls it.

    Args:
        data, protocols, pipelines, remember, every, depth_model, device: see `evaluate_truth`.
        json_file: file for the rows, rewritten after each scenario, so that an interruption loses none.

    Raises:
        InputError: see `evaluate_truth`.
    """
    console = Console()
    with console.status("loading") as status:
        rows = evaluate_truth(
            data,
            protocols,
            pipelines,
            every=every,
            remember=remember,
            depth_model=depth_model,
            device=device,
            progress=status.update,
            on_rows=row_recorder(console, truth_line, write_truth, json_file),
            on_note=note_printer(console),
        )
    print_table(console, truth_table(rows))
    return rows


def evaluate_truth(
    data: Sequence[str | Path | PosedSequence],
    protocols: Sequence[str] = TRUTH_PROTOCOLS,
    pipelines: Sequence[str] = ("geometric",),
    *,
    every: int = 1,
    remember: bool = False,
    depth_model: str = "",
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
    on_rows: Callable[[list[TruthRow]], None] = lambda rows: None,
    on_note: Callable[[str], None] | None = None,
) -> list[TruthRow]:
    """Evaluates provenance and confidence of pipelines on sequences.

    Args:
        data: posed sequences with depth, folders of them, or `worlds:SPLIT:COUNT` (see `world_sequences`).
        protocols: some of `PROTOCOLS` other than cloud. In mono, observations have no depth, and the world model
            estimates it.
        pipelines: names of `load_pipeline` with options after a `?` (see `pipeline_options`).
        every: evaluate every n-th held-out frame.
        remember: request the views `REQUESTS` times with `remember` and evaluate the last time.
        depth_model: depth estimator for the protocol mono, see `depth.load_depth_estimator`; "" for the bundled
            network.
        device: device of the pipelines.
        progress: called with a line of text before each part, and between denoising steps.
        on_rows: called with the rows of each pipeline on each scenario when they are ready.
        on_note: called with sentences about damaged frames.

    Returns:
        Three rows, one for each class, for each sequence, protocol and pipeline.

    Raises:
        InputError: a protocol, pipeline or sequence is unknown or unsuitable.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS or protocol == "cloud":
            expected = ", ".join(name for name in PROTOCOLS if name != "cloud")
            raise InputError(f"--truth evaluates views under the protocols {expected}; '{protocol}' is none of them.")
    for name in pipelines:
        if name in BASELINES:
            raise InputError(f"The baseline '{name}' does not label its pixels; --truth needs a pipeline.")
    sequences, names, loaded, estimator = open_inputs(data, protocols, pipelines, depth_model, device, on_note)
    if "mono" in protocols and estimator is None:
        raise InputError("The protocol mono needs a depth model; remove --depth-model none or select other protocols.")
    rows: list[TruthRow] = []
    for protocol in protocols:
        for sequence in sequences:
            scenario = make_scenario(sequence, protocol, every)
            targets = scenario.target_views
            seen = []
            for number in range(len(targets)):
                progress(f"{protocol}, {sequence.path.name}: ground truth of view {number + 1} of {len(targets)}")
                seen.append(find_seen(targets[number], scenario.observed_views, scenario.views_with_depth))
            requests = REQUESTS if remember else 1
            if remember:
                scenario = repeated(scenario, requests)
            for name in names:
                scorer = TruthScorer(sequence.path.name, protocol, name, requests)
                on_progress = prefixed(progress, f"{protocol}, {sequence.path.name}: {name}")
                on_progress(f"{len(scenario.path)} views")
                with loaded.use(name) as pipeline:
                    for view in imagined_views(pipeline, scenario, device, estimator, on_progress):
                        if view.index in scenario.evaluated:
                            number = scenario.evaluated.index(view.index)
                            scorer.add(view, targets[number], seen[number])
                new = scorer.rows()
                rows += new
                on_rows(new)
    return rows
