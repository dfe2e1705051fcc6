"""`worldstereo panorama`: from one panorama, the panorama at another position."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worldstereo_ros.cli.options import INPUT, OUTPUT, PATH, DepthModel, Device, Model, Out, Prompt, Seed, Variant
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.result_files import MAP_FILE
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    import numpy as np


def panorama(
    source: Annotated[Path, typer.Argument(metavar="IMAGE", help="Equirectangular image of the full sphere.")],
    distance: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Distances along the rays: a 16-bit PNG in millimetres or a .npy file in metres.",
            show_default="estimated",
            rich_help_panel=INPUT,
        ),
    ] = None,
    at: Annotated[
        tuple[float, float, float],
        typer.Option(
            metavar="X Y Z",
            help="Position to imagine, in metres to the right, down and ahead of the source panorama.",
            rich_help_panel=PATH,
        ),
    ] = (0.0, 0.0, 1.0),
    model: Model = DEFAULT_MODEL,
    variant: Variant = "",
    prompt: Prompt = "",
    seed: Seed = 0,
    depth_model: DepthModel = "",
    device: Device = "cpu",
    height: Annotated[
        int,
        typer.Option(
            metavar="PIXELS",
            help="Height of the imagined panorama; it is twice as wide.",
            min=64,
            max=4096,
            rich_help_panel=OUTPUT,
        ),
    ] = 512,
    out: Out = Path("panorama_out"),
) -> None:
    """Imagine the panorama at another position than the one where it was taken.

    The output folder holds panorama.png, observed.png and estimated.png (masks), provenance.png, distance.png
    (millimetres), sheet.png, figures.json, world.wsmap (the memories), and the folder imagined/ (the perspective views,
    a posed sequence). Without --distance the distances are estimated, and nothing counts as observed.
    """
    import numpy as np
    from rich.console import Console
    from rich.markup import escape

    from worldstereo_ros.cli.summaries import estimated_distance_warning, point_counts
    from worldstereo_ros.depth.estimators import BUNDLED_NETWORK, load_depth_estimator
    from worldstereo_ros.io.images import read_image, write_image
    from worldstereo_ros.io.posed_sequences import write_sequence
    from worldstereo_ros.io.view_labels import write_provenance
    from worldstereo_ros.panorama.imagine import imagine_panorama, observe_panorama
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.visualization.contact_sheet import panorama_sheet
    from worldstereo_ros.world import WorldModel

    console = Console()
    if not np.isfinite(at).all():
        raise InputError(f"The position {at} is not finite; three numbers in metres were expected: x y z.")
    image = read_image(source)
    distances = None if distance is None else read_distance(distance)
    estimator = load_depth_estimator(depth_model, device) if distances is None else None
    pipeline = load_pipeline(model, device, variant=variant)
    world = WorldModel(pipeline, depth_estimator=estimator, device=device)
    with console.status("observing") as status:
        observed = observe_panorama(world, image, distances)
        console.print(f"[bold]{source.name}[/]: {observed.views} views, {point_counts(world.cloud)}")
        if observed.estimated is not None:
            warning = estimated_distance_warning(observed.estimated, depth_model or BUNDLED_NETWORK)
            console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
        world_from_panorama = np.eye(4)
        world_from_panorama[:3, 3] = at
        start = time.perf_counter()
        imagined = imagine_panorama(
            world,
            world_from_panorama,
            height=height,
            prompt=prompt,
            seed=seed,
            remember=True,
            on_step=lambda stage, step, steps: status.update(f"imagining: {stage} {step + 1} of {steps}"),
        )
    seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    world.save(out / MAP_FILE)
    result = imagined.panorama
    write_image(out / "panorama.png", result.image)
    _write_single_channel(out / "observed.png", result.observed.astype(np.uint8) * 255)
    _write_single_channel(out / "estimated.png", result.estimated.astype(np.uint8) * 255)
    write_provenance(out / "provenance.png", result.provenance)
    if result.distance is not None:
        millimetres = np.clip(np.rint(result.distance * 1000), 0, 65535).astype(np.uint16)
        _write_single_channel(out / "distance.png", millimetres)
    write_sequence(out / "imagined", imagined.views)
    write_image(out / "sheet.png", panorama_sheet(image, imagined))
    figures = {
        "at": list(at),
        "model": model,
        "views": len(imagined.views),
        "seconds": round(seconds, 2),
        "observed": round(float(result.observed.mean()), 4),
        "estimated": round(float(result.estimated.mean()), 4),
    }
    console.print(
        f"Of the panorama, {result.observed.mean():.0%} is observed, {result.estimated.mean():.0%} estimated, and "
        f"{1 - (result.observed | result.estimated).mean():.0%} imagined."
    )
    if observed.estimated is not None and observed.estimated.agreement is not None:
        figures["distance_agreement"] = asdict(observed.estimated.agreement)
    closure = imagined.closure
    if closure is not None:
        figures |= {"seam": closure.seam, "joint": closure.inner, "ratio": closure.ratio}
        console.print(
            f"Closure of the ring of views: {closure.seam:.2f} grey levels of difference at the closing seam, "
            f"{closure.inner:.2f} at the other seams (ratio {closure.ratio:.2f})."
        )
        if closure.distance_seam is not None and closure.distance_inner is not None:
            figures |= {"distance_seam": closure.distance_seam, "distance_joint": closure.distance_inner}
            console.print(
                f"Distances differ by {closure.distance_seam:.1%} at the closing seam, by {closure.distance_inner:.1%} "
                "at the other seams."
            )
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console.print(f"See [bold]{out / 'sheet.png'}[/]; in the browser: worldstereo view {out / MAP_FILE}")


def read_distance(path: Path) -> np.ndarray:
    """Reads the distances of a panorama.

    Args:
        path: a 16-bit PNG in millimetres, or a .npy file in metres.

    Returns:
        (H, 2 H) float32 metres along the ray, 0 = unknown.

    Raises:
        InputError: the file is missing or damaged, holds something else, or no valid distance.
    """
    import numpy as np

    from worldstereo_ros.imaging.codecs import MAX_DEPTH_M, clean_depth
    from worldstereo_ros.io.images import read_depth

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
        raise InputError(f"{path} holds no distance between 0 and {MAX_DEPTH_M:.0f} m.")
    return distance


def _write_single_channel(path: Path, image: np.ndarray) -> None:
    """Writes a mask or a 16-bit depth image."""
    import cv2

    if not cv2.imwrite(str(path), image):
        raise OSError(f"The image {path} could not be written.")
