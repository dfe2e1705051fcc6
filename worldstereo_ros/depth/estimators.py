"""Monocular depth estimators: the bundled network, and models of the Hugging Face Hub through transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.depth.familiarity import Familiarity, fuse_with_typical
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.codecs import clean_depth
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.utils.errors import first_line
from worldstereo_ros.weights.bundled import BUNDLED, bundled_folder

if TYPE_CHECKING:
    from worldstereo_ros.models.depth_network import DepthNetwork, MonocularDepth

# Names of estimators: the bundled network, and none (sensor depth only).
SMALL, NONE = BUNDLED[0], "none"
BUNDLED_NETWORK = "the bundled network ('small')"

# Depths of the nearest and farthest pixels of relative inverse depth, until it is aligned to a reference.
ASSUMED_NEAR_M, ASSUMED_FAR_M = 1.0, 10.0

_METRIC_MODELS = ("depth_pro", "glpn", "prompt_depth_anything", "zoedepth", "chmv2")
_INVERSE_MODELS = ("dpt", "tipsv2_dpt")


@dataclass(frozen=True)
class DepthEstimate:
    """Depth of one image, and the estimator's confidence in it.

    Attributes:
        depth: (H, W) float32 metres along the optical axis, 0 = unknown.
        confidence: (H, W) float32 in [0, 1]: probability that the depth is right within
            `provenance.DEPTH_TOLERANCE`, 0 where the depth is unknown; None if the estimator does not say.
    """

    depth: np.ndarray
    confidence: np.ndarray | None


class DepthEstimator(Protocol):
    """Estimates the depth of an image."""

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """Estimates depth.

        Args:
            image: (H, W, 3) uint8 RGB, undistorted.
            camera: intrinsics of the image.

        Returns:
            (H, W) float32 metres along the optical axis, 0 = unknown.
        """


def estimate_depth(estimator: DepthEstimator, image: np.ndarray, camera: Camera) -> DepthEstimate:
    """Estimates depth with its confidence, for estimators with and without a method `estimate` that gives one.

    Args:
        estimator: estimator.
        image: (H, W, 3) uint8 RGB, undistorted.
        camera: intrinsics of the image.

    Raises:
        DepthError: the estimator gives no depth for this image.
    """
    estimate = getattr(estimator, "estimate", None)
    if estimate is not None:
        found: DepthEstimate = estimate(image, camera)
        return found
    return DepthEstimate(estimator(image, camera), None)


def load_depth_estimator(name: str = "", device: Any = "cpu") -> DepthEstimator | None:
    """Loads the depth estimator of a name, as given by a parameter or an option.

    Args:
        name: "" for the bundled network, loaded on first use; "small" for the same, loaded at once; "none" for no
            estimator; the folder of a network trained by `worldstereo train depth`; or the folder or hub id of a model
            for `HubDepth`.
        device: torch device.

    Returns:
        The estimator, or None for "none".

    Raises:
        DepthError: the estimator is unavailable. For "" this error is raised by the first estimate instead.
    """
    if name == NONE:
        return None
    if name in ("", SMALL):
        small = SmallDepth(device=device)
        if name:
            small.load()
        return small
    return load_small_depth(Path(name), device) or HubDepth(name, device)


def _is_depth_network(folder: Path) -> bool:
    """True for a folder with a `DepthNetwork`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == "DepthNetwork"


class SmallDepth:
    """Metric depth from a single image by a `DepthNetwork`, such as the bundled network of a few megabytes.

    The network is loaded on first use, so that a robot with a depth sensor does not load it.

    Attributes:
        folder: folder with config.json and safetensors.
        device: torch device.
    """

    def __init__(self, folder: Path | None = None, device: Any = "cpu") -> None:
        """Creates the estimator without loading the network.

        Args:
            folder: folder with config.json and safetensors; None = the bundled network.
            device: torch device.
        """
        self.folder = bundled_folder(SMALL) / "base" / "depth" if folder is None else folder
        self.device = device
        self._network: DepthNetwork | None = None
        self._familiarity: Familiarity | None = None

    def load(self) -> DepthNetwork:
        """Returns the network, loading it on the first call.

        Raises:
            DepthError: the network is missing or damaged.
        """
        if self._network is None:
            from worldstereo_ros.models.checkpoints.weights import CheckpointError
            from worldstereo_ros.models.depth_network import load_depth_network

            if not (self.folder / "config.json").is_file():
                raise DepthError(
                    f"There is no depth network in {self.folder}. Provide depth images of a sensor, or select another "
                    "depth model (parameter `depth_model`, option --depth-model)."
                )
            try:
                network = load_depth_network(self.folder, self.device)
                if network.config.familiar is not None:
                    self._familiarity = Familiarity.from_config(network.config.familiar)
            except (CheckpointError, RuntimeError, ValueError) as error:
                raise DepthError(f"The depth network cannot be loaded: {error}") from None
            self._network = network
        return self._network

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """Estimates depth, see `estimate`.

        Raises:
            DepthError: the network is unavailable, or classifies every pixel as sky.
        """
        return self.estimate(image, camera).depth

    def estimate(self, image: np.ndarray, camera: Camera) -> DepthEstimate:
        """Estimates depth with its confidence.

        In an image unlike those that the network was trained on, depth falls back towards the median depth of the
        training images, see `familiarity`. There, the depth is not proportional to the focal length of the camera.

        Raises:
            DepthError: the network is unavailable, or classifies every pixel as sky.
        """
        predicted = self.predict(image, camera)
        surface = predicted.depth > 0
        if not surface.any():
            raise DepthError("The depth network classifies every pixel of this image as sky, so it gives no depth.")
        log_depth = np.log(np.where(surface, predicted.depth, np.float32(1)))
        familiarity = self.familiarity(image)
        fused, confidence = fuse_with_typical(log_depth, predicted.scale, familiarity, self.load().config.typical_depth)
        depth = clean_depth(np.where(surface, np.exp(fused), np.float32(0)))
        return DepthEstimate(depth, np.where(depth > 0, confidence, 0).astype(np.float32))

    def familiarity(self, image: np.ndarray) -> float:
        """How typical an image (H, W, 3) uint8 RGB is of those that the network was trained on, in [0, 1].

        1 for a network without statistics of its training images.

        Raises:
            DepthError: the network is unavailable.
        """
        network = self.load()
        if self._familiarity is None:
            return 1.0
        rows, columns = network.input_size(*image.shape[:2])
        return self._familiarity(resize_image(image, columns, rows))

    def predict(self, image: np.ndarray, camera: Camera) -> MonocularDepth:
        """The depth of the network with its own uncertainty, as it is: without falling back in unfamiliar images.

        It is proportional to the focal length of the camera.

        Raises:
            DepthError: the network is unavailable, or its output is not finite.
        """
        estimate = self.load().predict(image, camera)
        if not np.isfinite(estimate.depth).all():
            raise DepthError(f"The depth network in {self.folder} returned values that are not finite.")
        return estimate


def load_small_depth(folder: Path, device: Any = "cpu") -> SmallDepth | None:
    """Loads the depth network of a folder.

    Returns:
        The loaded estimator, or None if the folder has no depth network.

    Raises:
        DepthError: the network is damaged.
    """
    if not _is_depth_network(folder):
        return None
    small = SmallDepth(folder, device)
    small.load()
    return small


class HubDepth:
    """A depth model of the Hugging Face Hub, or of a folder in its format (safetensors only).

    Attributes:
        model: hub id or folder.
        output: "metric" (metres) or "disparity" (relative inverse depth).
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
        """Loads the model. Cached files are used without network access.

        Args:
            model: a hub id such as "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf", or a folder.
            device: torch device.
            output: "metric" or "disparity"; None = by the model's configuration.
            revision: commit of the hub repository, to pin the version.
            local_files_only: no network access (as with the environment variable HF_HUB_OFFLINE=1).

        Raises:
            DepthError: transformers is missing, the weights are unavailable, or the model does not estimate depth.
        """
        self.model = str(model)
        if output not in (None, "metric", "disparity"):
            raise DepthError(f"The depth output '{output}' is unknown; 'metric' or 'disparity' was expected.")
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline
        except ImportError as error:
            raise DepthError("Depth models need transformers: run pip install 'transformers>=5'.") from error
        network, processor = self._load(AutoModelForDepthEstimation, AutoImageProcessor, revision, local_files_only)
        self.output = output or _output_of(network.config, self.model)
        try:
            self._pipeline = pipeline("depth-estimation", model=network, image_processor=processor, device=device)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise DepthError(f"The depth model {self.model} cannot be moved to {device}: {error}.") from error

    def _load(self, model_class: Any, processor_class: Any, revision: str | None, local_only: bool) -> tuple[Any, Any]:
        if Path(self.model).is_absolute() and not Path(self.model).is_dir():
            raise DepthError(f"The depth model folder {self.model} does not exist.")
        from huggingface_hub import snapshot_download
        from transformers import AutoConfig

        from worldstereo_ros.models.checkpoints.bounds import check_numbers
        from worldstereo_ros.models.checkpoints.hub import offline

        problem: Exception = DepthError("it was not found")
        options: dict[str, Any] = {"revision": revision, "local_files_only": True, "trust_remote_code": False}
        for local in (True,) if local_only or Path(self.model).is_dir() else (True, False):
            try:
                if not local:
                    snapshot_download(self.model, revision=revision, allow_patterns=["*.json", "*.safetensors"])
                # Offline: its configuration may name other repositories, which the user did not choose.
                with offline():
                    config = AutoConfig.from_pretrained(self.model, **options)
                    check_numbers(Path(self.model) / "config.json", config.to_dict())
                    network = model_class.from_pretrained(self.model, config=config, use_safetensors=True, **options)
                    return network, processor_class.from_pretrained(self.model, **options)
            except Exception as error:  # safetensors, the hub client and the models raise errors of their own
                problem = error
        raise DepthError(
            f"The depth model '{self.model}' cannot be loaded: {first_line(problem)}. Give a folder with config.json, "
            "preprocessor_config.json and model.safetensors, or download the model once: "
            f"hf download {self.model}"
        ) from problem

    def __call__(self, image: np.ndarray, camera: Camera) -> np.ndarray:
        """Estimates depth, see `DepthEstimator`.

        Relative inverse depth is mapped to 1 to 10 m; align it to a reference (`alignment.align_depth`).

        Raises:
            DepthError: the model returned no usable depth.
        """
        predicted = self.predict(image)
        if self.output == "disparity":
            low, high = np.percentile(predicted, (2, 98))
            if not high > low:
                raise DepthError(f"The depth model {self.model} returned one distance for all pixels of this image.")
            relative = np.clip((predicted - low) / (high - low), 0, None)
            predicted = 1 / (1 / ASSUMED_FAR_M + (1 / ASSUMED_NEAR_M - 1 / ASSUMED_FAR_M) * relative)
        depth = clean_depth(predicted)
        if not depth.any():
            raise DepthError(f"The depth model {self.model} returned no valid depth for this image.")
        return depth

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Returns the (H, W) float32 output of the model: metres, or inverse depth of an arbitrary unit.

        Raises:
            DepthError: the output is of another size or not finite.
        """
        import torch

        height, width = image.shape[:2]
        with torch.inference_mode(), np.errstate(all="ignore"):
            predicted = self._pipeline(Image.fromarray(image))["predicted_depth"]
        array = predicted.float().cpu().numpy().reshape(predicted.shape[-2:])
        if array.shape != (height, width) or not np.isfinite(array).all():
            raise DepthError(
                f"The depth model {self.model} returned an array of shape {array.shape}, finite: "
                f"{bool(np.isfinite(array).all())}; finite values of shape {(height, width)} were expected."
            )
        return array


def _output_of(config: Any, name: str) -> str:
    """Returns "metric" or "disparity" for the configuration of a transformers model."""
    kind = config.model_type
    if kind == "depth_anything":
        return "metric" if config.depth_estimation_type == "metric" else "disparity"
    if kind in _METRIC_MODELS:
        return "metric"
    if kind in _INVERSE_MODELS:
        return "disparity"
    raise DepthError(
        f"It is unknown whether '{name}' (model type {kind}) predicts metres or inverse depth; "
        "pass output='metric' or output='disparity'."
    )
