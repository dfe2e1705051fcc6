"""Evaluation of made eyes: `worldstereo evaluate --stereo`.

Each pipeline sees the frames in order and makes the other eye, which is compared with the true one. Depth that was
measured and depth that is estimated are never mixed: they have rows of their own.

`warp_error` is the root mean square difference between a made frame and the one before, moved by the optical flow of
the *true* frames, over pixels where that flow is consistent both ways; `flicker` is the mean absolute difference of the
same over the holes alone. Both are in grey levels, and the true frames have some, too (pipeline `truth` in the JSON).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from rich.console import Console

from worldstereo_ros.depth.estimators import NONE, SMALL, DepthEstimator, load_depth_estimator
from worldstereo_ros.evaluation.metrics import psnr, ssim
from worldstereo_ros.evaluation.output import note_printer, print_table, row_recorder, write_rows
from worldstereo_ros.evaluation.perceptual import MIN_SIZE_PX, is_available, load_perceptual_network, to_tensor
from worldstereo_ros.evaluation.report import mean
from worldstereo_ros.evaluation.stereo_data import StereoSequence, TruthFrame, open_stereo_data
from worldstereo_ros.evaluation.tables import Column, build_table
from worldstereo_ros.pipelines.stereo.frame_geometry import GeometryTracker
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import REFINER, StereoSettings
from worldstereo_ros.pipelines.stereo.settings import SMALL as SMALL_REFINER
from worldstereo_ros.pipelines.stereo.steadying import FlowLink, flow_image
from worldstereo_ros.pipelines.stereo.warp import warp_to_eye
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import has_bundled

PIPELINES = ("unchanged", "background", "telea", "geometric", "small")
SENSOR, ESTIMATED = "sensor", "estimated"
TRUTH = "truth"
TELEA_RADIUS_PX = 3
PERCEPTUAL_FRAMES = 2  # of a sequence, half a second each


@dataclass(frozen=True)
class StereoRow:
    """One pipeline on one sequence; means over frames, None where a figure does not apply.

    Attributes:
        sequence, pipeline: names.
        depth: sensor or estimated.
        truth: other eye, or there and back.
        frames: number of frames.
        psnr, psnr_holes, psnr_seen: dB; of all pixels, of those that the camera does not see, and of the others.
        ssim, st_lpips: structural similarity, and ST-LPIPS of some frames.
        flicker, warp_error: grey levels, see the module.
        sgbm_epe: mean error of the disparity that OpenCV's semi-global matching finds in the pair, pixels.
        seconds_per_frame: time to make an eye, without depth estimation.
    """

    sequence: str
    pipeline: str
    depth: str
    truth: str
    frames: int
    psnr: float | None = None
    psnr_holes: float | None = None
    psnr_seen: float | None = None
    ssim: float | None = None
    st_lpips: float | None = None
    flicker: float | None = None
    warp_error: float | None = None
    sgbm_epe: float | None = None
    seconds_per_frame: float | None = None


_FIGURES = (
    "psnr",
    "psnr_holes",
    "psnr_seen",
    "ssim",
    "st_lpips",
    "flicker",
    "warp_error",
    "sgbm_epe",
    "seconds_per_frame",
)


class EyeMaker(Protocol):
    """Makes the other eye of the next frame."""

    def __call__(
        self, image: np.ndarray, depth: np.ndarray, world_from_camera: np.ndarray | None, new_shot: bool
    ) -> np.ndarray:
        """Returns (H, W, 3) uint8 RGB."""


def load_maker(name: str, sequence: StereoSequence, device: str = "cpu") -> EyeMaker:
    """The pipeline of a name for a sequence.

    Args:
        name: one of `PIPELINES`, or the folder of a training run of the refiner.
        sequence: what its frames are to be like.
        device: torch device of the network that paints.

    Raises:
        InputError: the name is unknown, or this installation has no weights of it.
    """
    given = sequence.settings
    if name == "unchanged":
        return lambda image, depth, world_from_camera, new_shot: image
    if name == "telea":
        plain = GeometricStereo(sequence.camera, given)

        def telea(image: np.ndarray, depth: np.ndarray, world_from_camera: object, new_shot: bool) -> np.ndarray:
            warped = warp_to_eye(
                image, plain.disparity_of(depth, image)[0], eye=given.eye, offset=given.offset(sequence.camera.fx)
            )
            return cv2.inpaint(warped.image, warped.hole.view(np.uint8), TELEA_RADIUS_PX, cv2.INPAINT_TELEA)

        return telea
    alone, painter = name == "background", None
    if name not in ("background", "geometric"):
        from worldstereo_ros.pipelines.stereo.painting import load_painter

        _check_name(name)
        painter = load_painter(name, device)
    settings = StereoSettings(
        base=given.base, strength=given.strength, convergence=given.convergence, eye=given.eye,
        memory=0 if alone else given.memory, steady=not alone, soft_edges=not alone,
    )  # fmt: skip
    pipeline = GeometricStereo(sequence.camera, settings, painter=painter)

    def make(image: np.ndarray, depth: np.ndarray, world_from_camera: np.ndarray | None, new_shot: bool) -> np.ndarray:
        if new_shot:
            pipeline.restart()
        return pipeline.make(image, depth, world_from_camera).image

    return make


def _check_name(name: str) -> None:
    if name not in PIPELINES and not Path(name).is_dir():
        raise InputError(
            f"The stereo pipeline '{name}' is unknown; {', '.join(PIPELINES)}, or the folder of a training run were "
            "expected."
        )


@dataclass
class _Scores:
    """Figures of the frames of one pipeline so far, and its frame before."""

    values: dict[str, list[float | None]] = field(default_factory=lambda: {name: [] for name in _FIGURES})
    before: np.ndarray | None = None

    def row(self, sequence: StereoSequence, pipeline: str, depth: str, frames: int) -> StereoRow:
        figures = {name: mean(values) for name, values in self.values.items()}
        return StereoRow(sequence.name, pipeline, depth, sequence.truth, frames, **figures)


def evaluate_sequence(
    sequence: StereoSequence,
    pipelines: Sequence[str],
    depth: str,
    estimator: DepthEstimator | None = None,
    *,
    device: str = "cpu",
    with_features: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> list[StereoRow]:
    """Evaluates pipelines on one sequence; each frame is loaded once.

    Args:
        sequence: frames with a true other eye.
        pipelines: names.
        depth: `SENSOR` or `ESTIMATED`.
        estimator: for estimated depth.
        device: torch device of the networks that paint.
        with_features: compute ST-LPIPS, if its weights are installed.
        progress: called with a line of text before each frame.

    Returns:
        A row for each pipeline, and one for the true frames (`TRUTH`) if there are several, with their flicker.
    """
    makers = {name: load_maker(name, sequence, device) for name in pipelines}
    scores = {name: _Scores() for name in (*pipelines, TRUTH)}
    tracker = GeometryTracker(sequence.camera, estimator)
    perceptual = with_features and is_available() and min(sequence.camera.width, sequence.camera.height) >= MIN_SIZE_PX
    chosen = set(np.linspace(0, sequence.frames - 1, PERCEPTUAL_FRAMES).round().astype(int)) if perceptual else set()
    before: TruthFrame | None = None
    for index in range(sequence.frames):
        progress(f"{sequence.name}, {depth} depth: frame {index + 1} of {sequence.frames}")
        frame = sequence.load(index)
        given = frame.depth if depth == SENSOR else None
        geometry = tracker.step(frame.image, given, frame.world_from_camera)
        link = None if before is None else _link(before.truth, frame.truth)
        for name, maker in makers.items():
            start = time.perf_counter()
            made = maker(frame.image, geometry.depth, geometry.world_from_camera, geometry.new_shot)
            seconds = time.perf_counter() - start
            _score(scores[name], made, frame, sequence, link)
            scores[name].values["seconds_per_frame"].append(seconds)
            if index in chosen:
                scores[name].values["st_lpips"].append(_st_lpips(made, frame.truth))
        _score_motion(scores[TRUTH], frame.truth, frame.hole, link)
        before = frame
    rows = [scores[name].row(sequence, name, depth, sequence.frames) for name in pipelines]
    if sequence.frames > 1 and depth == SENSOR:
        rows.append(scores[TRUTH].row(sequence, TRUTH, depth, sequence.frames))
    return rows


def _link(before: np.ndarray, now: np.ndarray) -> FlowLink:
    return FlowLink(flow_image(before), flow_image(now), (now.shape[1], now.shape[0]))


def _score(
    scores: _Scores, made: np.ndarray, frame: TruthFrame, sequence: StereoSequence, link: FlowLink | None
) -> None:
    values = scores.values
    values["psnr"].append(psnr(made, frame.truth))
    values["ssim"].append(ssim(made, frame.truth))
    if frame.hole is not None:
        values["psnr_holes"].append(psnr(made, frame.truth, frame.hole))
        values["psnr_seen"].append(psnr(made, frame.truth, ~frame.hole))
    values["sgbm_epe"].append(_sgbm_error(made, frame, sequence))
    _score_motion(scores, made, frame.hole, link)


def _score_motion(scores: _Scores, made: np.ndarray, hole: np.ndarray | None, link: FlowLink | None) -> None:
    if link is not None and scores.before is not None:
        difference = made.astype(np.float32) - link.carry_image(scores.before)
        kept = link.consistent
        if kept.any():
            scores.values["warp_error"].append(float(np.sqrt((difference[kept] ** 2).mean())))
        if hole is not None and (kept & hole).any():
            scores.values["flicker"].append(float(np.abs(difference[kept & hole]).mean()))
    scores.before = made


def _sgbm_error(made: np.ndarray, frame: TruthFrame, sequence: StereoSequence) -> float | None:
    """Mean error of matched disparity; None without true disparity, or if nothing matches."""
    if frame.disparity is None:
        return None
    offset = sequence.settings.offset(sequence.camera.fx)
    left, right = (made, frame.image) if sequence.settings.eye == "left" else (frame.image, made)
    true = frame.disparity - np.float32(offset)
    known = np.isfinite(true)
    if not known.any():
        return None
    low = int(np.floor(min(0.0, float(true[known].min()))))
    count = max(16, 16 * -(-int(np.ceil(float(np.percentile(true[known], 99.5))) + 4 - low) // 16))
    matcher = cv2.StereoSGBM_create(
        minDisparity=low, numDisparities=count, blockSize=5, P1=8 * 3 * 25, P2=32 * 3 * 25, disp12MaxDiff=1,
        uniquenessRatio=10, speckleWindowSize=100, speckleRange=2,
    )  # fmt: skip
    found = matcher.compute(left, right).astype(np.float32) / 16
    both = known & (found >= low)
    return float(np.abs(found - true)[both].mean()) if both.any() else None


def _st_lpips(made: np.ndarray, truth: np.ndarray) -> float:
    import torch

    network = load_perceptual_network()
    with torch.inference_mode():
        first, second = (network.features(to_tensor(image)) for image in (made, truth))
        return float(network.distance_map(first, second, truth.shape[:2]).mean())


def means(rows: Sequence[StereoRow]) -> list[StereoRow]:
    """One row for each pipeline, depth and truth with several sequences: means over sequences."""
    groups: dict[tuple[str, str, str], list[StereoRow]] = {}
    for row in rows:
        groups.setdefault((row.truth, row.depth, row.pipeline), []).append(row)
    return [
        StereoRow(
            "mean", pipeline, depth, truth, sum(row.frames for row in group),
            **{name: mean([getattr(row, name) for row in group]) for name in _FIGURES},
        )
        for (truth, depth, pipeline), group in groups.items()
        if len(group) > 1
    ]  # fmt: skip


COLUMNS = [
    Column("sequence", attrgetter("sequence"), label=True, fold=True),
    Column("truth", attrgetter("truth"), label=True),
    Column("depth", attrgetter("depth"), label=True),
    Column("pipeline", attrgetter("pipeline"), label=True),
    Column("frames", attrgetter("frames")),
    Column("PSNR", attrgetter("psnr"), "{:.2f}"),
    Column("holes", attrgetter("psnr_holes"), "{:.2f}"),
    Column("seen", attrgetter("psnr_seen"), "{:.2f}"),
    Column("SSIM", attrgetter("ssim"), "{:.3f}"),
    Column("ST-LPIPS", attrgetter("st_lpips"), "{:.3f}"),
    Column("flicker", attrgetter("flicker"), "{:.2f}"),
    Column("warp error", attrgetter("warp_error"), "{:.2f}"),
    Column("SGBM px", attrgetter("sgbm_epe"), "{:.2f}"),
    Column("s/frame", attrgetter("seconds_per_frame"), "{:.3f}"),
]


def run_stereo(
    data: Sequence[str | Path],
    *,
    pipelines: Sequence[str] = (),
    depth_model: str = "",
    json_file: Path | None = None,
    with_features: bool = True,
    device: str = "cpu",
) -> list[StereoRow]:
    """Evaluates stereo pipelines and prints the table; `worldstereo evaluate --stereo` calls it.

    Args:
        data: see `stereo_data.open_stereo_data`.
        pipelines: some of `PIPELINES`, or folders of training runs of the refiner; empty: all that there are.
        depth_model: see `load_depth_estimator`; "" for the bundled network, "none" for sensor depth alone.
        json_file: file for the rows, rewritten after each sequence, so that an interruption loses none.
        with_features: compute ST-LPIPS.
        device: torch device of the depth estimator and of the networks that paint.

    Raises:
        InputError: data or a pipeline is unknown, or there is nothing to evaluate.
        DatasetError: a file is missing or contradicts another one, or no frame of a sequence can be read.
    """
    names = list(dict.fromkeys(pipelines)) or [
        name for name in PIPELINES if name != SMALL_REFINER or has_bundled(REFINER)
    ]
    for name in names:
        _check_name(name)
    console = Console()
    sequences = [sequence for one in data for sequence in open_stereo_data(one, note_printer(console))]
    estimator = None if depth_model == NONE else load_depth_estimator(depth_model or SMALL, device)
    if estimator is None and not any(sequence.sensor_depth for sequence in sequences):
        raise InputError("No sequence has measured depth, and --depth-model none disables its estimation.")
    rows: list[StereoRow] = []
    with console.status("loading") as status:
        record = row_recorder(console, _line, _write, json_file)
        for sequence in sequences:
            for depth in (SENSOR, ESTIMATED):
                if (depth == SENSOR and not sequence.sensor_depth) or (depth == ESTIMATED and estimator is None):
                    continue
                new = evaluate_sequence(
                    sequence, names, depth, estimator,
                    device=device, with_features=with_features, progress=status.update,
                )  # fmt: skip
                rows += new
                record(new)
    print_table(console, build_table([*rows, *means(rows)], COLUMNS))
    return rows


def _line(row: StereoRow) -> str:
    figures = ", ".join(f"{name} {getattr(row, name):.3g}" for name in _FIGURES if getattr(row, name) is not None)
    return f"{row.sequence}, {row.depth} depth, {row.pipeline}: {figures}"


def _write(rows: Sequence[StereoRow], path: Path) -> None:
    write_rows(path, [asdict(row) for row in rows], [asdict(row) for row in means(rows)])
