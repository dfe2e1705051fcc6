"""Where depth comes from when the sensor gives none, and how it is brought to the scale of what is known.

Sensor depth (16UC1, 32FC1) is decoded in `imagery.py`. Here: the small network that ships with the package, models of
the Hugging Face hub through transformers' depth-estimation pipeline, the choice between them, and the alignment of
their depth to sparse measurements or to the remembered cloud.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.codecs import MAX_DEPTH_METRES, clean_depth
from worldstereo_ros.imaging.inpainting import fill_depth, push_pull
from worldstereo_ros.weights.bundled import SHIPPED, shipped_folder

if TYPE_CHECKING:
    from worldstereo_ros.models.depth_network import DepthNetwork, MonocularDepth

SMALL, NONE = SHIPPED[0], "none"  # names of estimators: what ships, and no depth but a sensor's
SHIPPED_NETWORK = "the network that ships ('small')"

# Where a model gives only relative inverse depth, its nearest and farthest pixels are put here until something that
# is known corrects them.
ASSUMED_NEAR, ASSUMED_FAR = 1.0, 10.0
LEAST_KNOWN = 200  # pixels, to bring an estimate to the scale of memory

_METRIC_MODELS = ("depth_pro", "glpn", "prompt_depth_anything", "zoedepth", "chmv2")
_INVERSE_MODELS = ("dpt", "tipsv2_dpt")


class DepthError(ValueError):
    """Depth that cannot be had. The message is a sentence: what came, what was expected, what to do."""


class DepthEstimator(Protocol):
    """Gives depth to a picture."""

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """(H, W) float32 metres along the optical axis, 0 = unknown, of an (H, W, 3) uint8 RGB image."""


def choose_depth(name: str = "", device: Any = "cpu") -> DepthEstimator | None:
    """The estimator that a parameter or an option names.

    Args:
        name: "" for the network that ships, loaded when it is needed; "small" for the same, loaded now; "none" for no
            depth but a sensor's; a folder of a depth network that was trained here (`worldstereo train depth`), or a
            folder or a hub id of a model of `HubDepth`.
        device: of torch.

    Returns:
        None for "none".

    Raises:
        DepthError: what is named cannot be had. For "" it comes with the first picture.
    """
    if name == NONE:
        return None
    if name in ("", SMALL):
        small = SmallDepth(device=device)
        if name:
            small.load()
        return small
    return small_depth(Path(name), device) or HubDepth(name, device)


def _trained_here(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == "DepthNetwork"


class SmallDepth:
    """The depth network of a few megabytes that ships with the package: metres of one picture, on any machine.

    It is loaded with the first picture, so that a robot with a depth sensor never pays for it.

    Attributes:
        folder: with config.json and safetensors.
        device: of torch.
    """

    def __init__(self, folder: Path | None = None, device: Any = "cpu") -> None:
        """Args:
        folder: None: what ships.
        device: of torch.
        """
        self.folder = shipped_folder(SMALL) / "base" / "depth" if folder is None else folder
        self.device = device
        self._network: DepthNetwork | None = None

    def load(self) -> DepthNetwork:
        """The network, loaded where it was not yet.

        Raises:
            DepthError: there is none, or it is damaged.
        """
        if self._network is None:
            from worldstereo_ros.models.checkpoint import CheckpointError
            from worldstereo_ros.models.depth_network import load_depth_network

            if not (self.folder / "config.json").is_file():
                raise DepthError(
                    f"There is no depth network in {self.folder}. Send depth images of a sensor, or name a depth model "
                    "(parameter `depth_model`, option --depth-model)."
                )
            try:
                self._network = load_depth_network(self.folder, self.device)
            except (CheckpointError, RuntimeError) as error:
                raise DepthError(f"The depth network cannot be loaded: {error}") from None
        return self._network

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`; in metres as the camera's focal length makes them.

        Raises:
            DepthError: there is no network, or it sees nothing but sky.
        """
        depth = clean_depth(self.predict(image, camera).depth)
        if not depth.any():
            raise DepthError("The depth network sees nothing but sky in this picture.")
        return depth

    def predict(self, image: np.ndarray, camera: Camera) -> MonocularDepth:
        """Depth with how far it may be off.

        Raises:
            DepthError: there is no network, or its numbers are not finite.
        """
        said = self.load().predict(image, camera)
        if not np.isfinite(said.depth).all():
            raise DepthError(f"The depth network in {self.folder} gave numbers that are not finite.")
        return said


def small_depth(folder: Path, device: Any = "cpu") -> SmallDepth | None:
    """The depth network in a folder, loaded; None where the folder has none.

    Raises:
        DepthError: it is damaged.
    """
    if not _trained_here(folder):
        return None
    small = SmallDepth(folder, device)
    small.load()
    return small


class HubDepth:
    """A depth model of the Hugging Face hub, or of a folder in its format (safetensors only).

    Attributes:
        model: its name or folder.
        output: what it predicts: "metric" (metres) or "disparity" (relative inverse depth).
    """

    def __init__(
        self,
        model: str | Path,
        device: Any = "cpu",
        *,
        output: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        """Loads the model; what is on this machine already is used without asking the network.

        Args:
            model: a hub id such as "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf", or a folder.
            device: of torch.
            output: "metric" or "disparity"; None = as its configuration says.
            revision: commit of the hub repository, to pin what is loaded.
            local_files_only: never ask the network (the environment variable HF_HUB_OFFLINE=1 says the same).

        Raises:
            DepthError: transformers is missing, the weights cannot be had, or it is no depth model.
        """
        self.model = str(model)
        if output not in (None, "metric", "disparity"):
            raise DepthError(f"The depth output '{output}' is not known; 'metric' or 'disparity' was expected.")
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline
        except ImportError as error:
            raise DepthError("Depth models need transformers: pip install 'worldstereo_ros[depth]'.") from error
        network, processor = self._load(AutoModelForDepthEstimation, AutoImageProcessor, revision, local_files_only)
        self.output = output or _output_of(network.config, self.model)
        try:
            self._pipeline = pipeline("depth-estimation", model=network, image_processor=processor, device=device)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise DepthError(f"The depth model {self.model} cannot be put on {device}: {error}.") from error

    def _load(self, model_class: Any, processor_class: Any, revision: str | None, local_only: bool) -> tuple[Any, Any]:
        if Path(self.model).is_absolute() and not Path(self.model).is_dir():
            raise DepthError(f"There is no folder {self.model} with a depth model.")
        problem: Exception | None = None
        for local in (True,) if local_only or Path(self.model).is_dir() else (True, False):
            try:
                options = {"revision": revision, "local_files_only": local}
                network = model_class.from_pretrained(self.model, use_safetensors=True, **options)
                return network, processor_class.from_pretrained(self.model, **options)
            except Exception as error:  # safetensors, the hub client and the models have errors of their own
                problem = error
        why = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise DepthError(
            f"The depth model '{self.model}' cannot be loaded: {why} Name a folder with config.json, "
            "preprocessor_config.json and model.safetensors, or fetch it once with a network: "
            f"hf download {self.model}"
        ) from problem

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """See `DepthEstimator`. A model of relative inverse depth is spread over 1 to 10 m: align it (`align_depth`).

        Raises:
            DepthError: the model gave no usable depth.
        """
        predicted = self.predict(image)
        if self.output == "disparity":
            low, high = np.percentile(predicted, (2, 98))
            if not high > low:
                raise DepthError(f"The depth model {self.model} sees one distance everywhere in this picture.")
            relative = np.clip((predicted - low) / (high - low), 0, None)
            predicted = 1 / (1 / ASSUMED_FAR + (1 / ASSUMED_NEAR - 1 / ASSUMED_FAR) * relative)
        depth = clean_depth(predicted)
        if not depth.any():
            raise DepthError(f"The depth model {self.model} gave no depth that can be used for this picture.")
        return depth

    def predict(self, image: np.ndarray) -> np.ndarray:
        """(H, W) float32, exactly what the model says: metres, or inverse depth in a unit of its own."""
        import torch

        height, width = image.shape[:2]
        with torch.inference_mode(), np.errstate(all="ignore"):
            predicted = self._pipeline(Image.fromarray(image))["predicted_depth"]
        array = predicted.float().cpu().numpy().reshape(predicted.shape[-2:])
        if array.shape != (height, width) or not np.isfinite(array).all():
            raise DepthError(
                f"The depth model {self.model} gave {array.shape} values, some of them perhaps not finite; "
                f"{(height, width)} finite ones were expected."
            )
        return array


def _output_of(config: Any, name: str) -> str:
    kind = config.model_type
    if kind == "depth_anything":
        return "metric" if config.depth_estimation_type == "metric" else "disparity"
    if kind in _METRIC_MODELS:
        return "metric"
    if kind in _INVERSE_MODELS:
        return "disparity"
    raise DepthError(
        f"Whether '{name}' (model type {kind}) predicts metres or inverse depth is not known; "
        "say so: output='metric' or output='disparity'."
    )


# --- alignment -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alignment:
    """Depth brought to the scale of references.

    Attributes:
        depth: (H, W) float32 metres, 0 = unknown (also where the aligned inverse depth is not positive).
        scale, shift: 1 / depth = scale * disparity + shift, in 1 / metres.
        inlier_fraction: of the references, 0..1.
        references: number of pixels that were compared.
    """

    depth: np.ndarray
    scale: float
    shift: float
    inlier_fraction: float
    references: int


def align_depth(
    predicted: np.ndarray,
    reference: np.ndarray,
    *,
    kind: str = "disparity",
    tolerance: float = 0.05,
    min_references: int = 50,
    min_inliers: float = 0.2,
    hypotheses: int = 400,
    seed: int = 0,
) -> Alignment:
    """Scale and shift in disparity that bring a prediction to reference depth, by RANSAC and least squares.

    Monocular predictions are right up to two numbers there (Ranftl et al., MiDaS, 2020). Errors are relative: a
    reference fits where the aligned inverse depth is within `tolerance` of its own, so near and far count alike.
    Where the references lie at (nearly) one disparity, only the scale can be found.

    Args:
        predicted: (H, W); inverse depth in any unit (kind "disparity") or depth, any scale, 0 = unknown ("depth").
        reference: (H, W) metres, 0 = unknown: a sparse sensor, or the memory rendered at the same pose.
        kind: what `predicted` holds.
        tolerance: relative error of an inlier.
        min_references: pixels known in both that are needed.
        min_inliers: fraction of them that must agree.
        hypotheses: pairs of references tried.
        seed: of the draws; equal seeds give equal results.

    Raises:
        DepthError: shapes differ, too few references, or too few that agree.
    """
    if kind not in ("disparity", "depth"):
        raise DepthError(f"The kind '{kind}' is not known; 'disparity' or 'depth' was expected.")
    if predicted.shape != reference.shape:
        raise DepthError(f"The prediction is {predicted.shape} and the reference {reference.shape}; equal is needed.")
    with np.errstate(divide="ignore", invalid="ignore"):
        disparity = predicted.astype(np.float64) if kind == "disparity" else 1.0 / predicted.astype(np.float64)
        target = 1.0 / reference.astype(np.float64)
    usable = np.isfinite(disparity) & (predicted > 0 if kind == "depth" else True)
    both = usable & np.isfinite(target) & (reference > 0)
    x, y = disparity[both], target[both]
    if x.size < min_references:
        raise DepthError(
            f"Only {x.size} pixels have both a prediction and a reference; {min_references} are needed to find a scale."
        )
    scale, shift, inlier = _fit(x, y, tolerance, hypotheses, np.random.default_rng(seed))
    fraction = float(inlier.mean())
    if fraction < min_inliers or not scale > 0:
        raise DepthError(
            f"Only {fraction:.0%} of {x.size} references agree with one scale and shift; {min_inliers:.0%} are needed. "
            "The picture and the reference may not show the same place."
        )
    aligned = scale * disparity + shift
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(usable & (aligned > 0), 1.0 / aligned, 0)
    return Alignment(clean_depth(depth), scale, shift, fraction, int(x.size))


def _fit(
    x: np.ndarray, y: np.ndarray, tolerance: float, hypotheses: int, rng: np.random.Generator
) -> tuple[float, float, np.ndarray]:
    """(scale, shift, inliers) of y = scale x + shift with scale > 0 and relative errors."""
    rows = rng.permutation(x.size)[:4000]  # enough to rank hypotheses by; the refinement takes all
    sx, sy = x[rows], y[rows]
    low, high = np.percentile(x, (5, 95))
    first, second = rng.integers(0, sx.size, (2, hypotheses))
    spread = high - low
    scales, shifts = np.zeros(0), np.zeros(0)
    if spread > 1e-3 * max(abs(low), abs(high)):
        # Pairs too close together fix the scale badly.
        apart = np.abs(sx[first] - sx[second]) > 0.1 * spread
        first, second = first[apart], second[apart]
        scales = (sy[first] - sy[second]) / (sx[first] - sx[second])
        shifts = sy[first] - scales * sx[first]
    # Scale alone is a hypothesis too: it is all that one distance can tell.
    alone = rng.integers(0, sx.size, 50)
    alone = alone[sx[alone] > 0]
    scales = np.concatenate([scales, sy[alone] / sx[alone]])
    shifts = np.concatenate([shifts, np.zeros(len(alone))])
    positive = scales > 0
    scales, shifts = scales[positive], shifts[positive]
    if not len(scales):
        return 0.0, 0.0, np.zeros(x.size, dtype=bool)
    error = np.abs(scales[:, None] * sx + shifts[:, None] - sy) / sy
    best = int(np.minimum(error, tolerance).mean(axis=1).argmin())
    scale, shift = float(scales[best]), float(shifts[best])
    inlier = np.abs(scale * x + shift - y) <= tolerance * y
    for _ in range(5):
        refined = _least_squares(x[inlier], y[inlier], scale_only=shift == 0.0)
        if refined is None or not refined[0] > 0:
            break
        new = np.abs(refined[0] * x + refined[1] - y) <= tolerance * y
        if new.sum() < inlier.sum():
            break
        (scale, shift), unchanged, inlier = refined, bool((new == inlier).all()), new
        if unchanged:
            break
    return scale, shift, inlier


def _least_squares(x: np.ndarray, y: np.ndarray, *, scale_only: bool) -> tuple[float, float] | None:
    """Least squares of the relative error, centred so that large disparities cost no precision."""
    if x.size < 2:
        return None
    weight = 1 / y**2
    if scale_only:
        return float((weight * x * y).sum() / (weight * x * x).sum()), 0.0
    mx, my = np.average(x, weights=weight), np.average(y, weights=weight)
    variance = (weight * (x - mx) ** 2).sum()
    if not variance > 0:
        return None
    scale = float((weight * (x - mx) * (y - my)).sum() / variance)
    return scale, float(my - scale * mx)


def align_to_known(depth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Depth of an estimator, in the scale of what memory already holds of the place.

    Args:
        depth: (H, W) metres, right up to scale and shift in disparity.
        known: (H, W) metres of the memory rendered at the same pose, 0 = hole.

    Returns:
        (H, W) float32 metres; `depth` unchanged where too little is known, or too little of it agrees, to say better.
    """
    try:
        return align_depth(depth, known, kind="depth", min_references=200, tolerance=0.08).depth
    except DepthError:
        return clean_depth(depth)


def complete_depth(known: np.ndarray, estimated: np.ndarray) -> np.ndarray:
    """Depth that is known in part, gone on with in the shape that an estimator sees.

    The difference of the logarithms on the known part, the scale among it, is spread smoothly over the rest: far from
    what is known it is its mean, and no step is at the border. (`align_to_known` before it does not do better, at ten
    times the price.)

    Args:
        known: (H, W) metres of the memory rendered at the pose, 0 = hole.
        estimated: (H, W) metres of the painted picture, 0 = nothing there.

    Returns:
        (H, W) float32 metres; known pixels unchanged. Where the estimator sees nothing, and everywhere where too little
        is known to compare it with, `fill_depth` of what is known.

    Raises:
        DepthError: the shapes differ.
    """
    if known.shape != estimated.shape:
        raise DepthError(f"Known depth is {known.shape} and the estimate {estimated.shape}; equal is needed.")
    shown = known > 0
    filled = fill_depth(known)
    both = shown & (estimated > 0)
    if both.sum() < LEAST_KNOWN:
        return filled
    logs = np.log(np.where(estimated > 0, estimated, 1)).astype(np.float32)
    off = np.where(both, np.log(np.where(shown, known, 1)) - logs, 0).astype(np.float32)
    spread = push_pull(off[..., None], both.astype(np.float32))[..., 0]
    gone_on = np.clip(np.exp(logs + spread), 0, MAX_DEPTH_METRES)
    return np.where(shown, known, np.where(estimated > 0, gone_on, filled)).astype(np.float32)
