"""Where depth comes from when the sensor gives none, and how it is brought to the scale of what is known.

Sensor depth (16UC1, 32FC1) is decoded in `imagery.py`. Here: the small network that ships with the package, models of
the Hugging Face hub through transformers' depth-estimation pipeline, the choice between them, and the alignment of
their depth to sparse measurements or to the remembered cloud.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.codecs import clean_depth
from worldstereo_ros.weights.bundled import BUNDLED, bundled_folder

if TYPE_CHECKING:
    from worldstereo_ros.models.depth_network import DepthNetwork, MonocularDepth

SMALL, NONE = BUNDLED[0], "none"  # names of estimators: what ships, and no depth but a sensor's
BUNDLED_NETWORK = "the network that ships ('small')"

# Where a model gives only relative inverse depth, its nearest and farthest pixels are put here until something that
# is known corrects them.
ASSUMED_NEAR, ASSUMED_FAR = 1.0, 10.0

_METRIC_MODELS = ("depth_pro", "glpn", "prompt_depth_anything", "zoedepth", "chmv2")
_INVERSE_MODELS = ("dpt", "tipsv2_dpt")


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
        self.folder = bundled_folder(SMALL) / "base" / "depth" if folder is None else folder
        self.device = device
        self._network: DepthNetwork | None = None

    def load(self) -> DepthNetwork:
        """The network, loaded where it was not yet.

        Raises:
            DepthError: there is none, or it is damaged.
        """
        if self._network is None:
            from worldstereo_ros.models.checkpoints.weights import CheckpointError
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
