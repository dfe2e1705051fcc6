"""`worldstereo panorama`: from a panorama, what is seen all round from another place."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.status import Status

from worldstereo_ros.depth.estimators import choose_depth
from worldstereo_ros.imaging.codecs import MAX_DEPTH_METRES, clean_depth
from worldstereo_ros.io.images import read_depth, read_image, write_image
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.panorama.imagine import ImaginedPanorama, imagine_panorama, observe_panorama
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.contact_sheet import panorama_sheet
from worldstereo_ros.visualization.results import MAP_FILE
from worldstereo_ros.weights.bundled import DEFAULT_MODEL
from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class PanoramaRequest:
    """What `worldstereo panorama` was asked; the options of the command line say what each field means."""

    source: Path
    at: tuple[float, float, float] = (0.0, 0.0, 1.0)
    distance: Path | None = None
    depth_model: str = ""
    height: int = 512
    prompt: str = ""
    seed: int = 0
    model: str = DEFAULT_MODEL
    variant: str = ""
    device: str = "cpu"


def run_panorama(request: PanoramaRequest, out: Path) -> ImaginedPanorama:
    """Remembers a panorama, imagines another one beside it, and leaves pictures and the map in `out`.

    Raises:
        ValueError: the source, the distances, the place, a model or the device cannot be used.
        RuntimeError: the model failed.
    """
    console = Console()
    if not np.isfinite(request.at).all():
        raise InputError(f"The place {request.at} is no point; three numbers of metres were expected: x y z.")
    image = read_image(request.source)
    distance = None if request.distance is None else read_distance(request.distance)
    estimator = None if distance is not None else choose_depth(request.depth_model, request.device)
    pipeline = load_pipeline(request.model, request.device, variant=request.variant)
    world = WorldModel(pipeline, depth_estimator=estimator, device=request.device)
    with console.status("remembering") as status:
        observe_panorama(world, image, distance)
        console.print(f"[bold]{request.source.name}[/]: {len(world.cloud)} points remembered")
        place = np.eye(4)
        place[:3, 3] = request.at
        start = time.perf_counter()
        found = imagine_panorama(
            world,
            place,
            height=request.height,
            prompt=request.prompt,
            seed=request.seed,
            remember=True,
            on_step=lambda stage, step, steps: _say(status, stage, step, steps),
        )
    seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    world.save(out / MAP_FILE)
    panorama = found.panorama
    write_image(out / "panorama.png", panorama.image)
    _write(out / "observed.png", panorama.observed.astype(np.uint8) * 255)
    if panorama.distance is not None:
        millimetres = np.clip(np.rint(panorama.distance * 1000), 0, 65535).astype(np.uint16)
        _write(out / "distance.png", millimetres)
    write_sequence(out / "imagined", found.views)
    write_image(out / "sheet.png", panorama_sheet(image, found))
    figures = {
        "at": list(request.at),
        "model": request.model,
        "views": len(found.views),
        "seconds": round(seconds, 2),
        "observed": round(float(panorama.observed.mean()), 4),
    }
    if found.closure is not None:
        figures |= {"seam": found.closure.seam, "joint": found.closure.inner, "ratio": found.closure.ratio}
        console.print(
            f"The turn closes with {found.closure.seam:.2f} grey levels at its seam, {found.closure.inner:.2f} at the "
            f"other joints: ratio {found.closure.ratio:.2f}."
        )
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console.print(f"Look at [bold]{out / 'sheet.png'}[/]; in the browser: worldstereo view {out / MAP_FILE}")
    return found


def read_distance(path: Path) -> np.ndarray:
    """(H, 2 H) float32 metres along the ray, 0 = unknown: of a 16-bit PNG in millimetres, or a .npy file in metres.

    Raises:
        ValueError: the file is missing, holds something else, or no distance.
    """
    if path.suffix.lower() != ".npy":
        distance = read_depth(path)
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"The distances {path} cannot be read: {error}.") from None
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise InputError(f"{path} holds {array.dtype} of shape {array.shape}; numbers (H, 2 H) were expected.")
        distance = clean_depth(array)
    if not distance.any():
        raise InputError(f"{path} holds no distance between 0 and {MAX_DEPTH_METRES:.0f} m.")
    return distance


def _say(status: Status, stage: str, step: int, steps: int) -> None:
    status.update(f"imagining: {stage} {step + 1} of {steps}")


def _write(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f"The picture could not be written to {path}.")
