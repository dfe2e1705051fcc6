"""`worldstereo panorama`: from one panorama, the panorama at another position."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT, OUTPUT, PATH, DepthModel, Device, Model, Out, Prompt, Seed, Variant
from worldstereo_ros.utils.errors import InputError, first_line
from worldstereo_ros.visualization.result_files import IMAGINED_FOLDER, MAP_FILE
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.panorama.imagine import ImaginedPanorama, ObservedPanorama

PANORAMA_NAMES = (
    "panorama.png", "observed.png", "estimated.png", "provenance.png", "distance.png", "sheet.png", "figures.json",
    IMAGINED_FOLDER, MAP_FILE,
)  # fmt: skip
MAX_PANORAMA_PIXELS = 4096 * 2048  # views of 832 pixels for 120 degrees use less than half of this height


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

    from worldstereo_ros.cli.options import check_model_options
    from worldstereo_ros.cli.summaries import estimated_distance_warning, point_counts
    from worldstereo_ros.depth.estimators import BUNDLED_NETWORK, NONE, load_depth_estimator
    from worldstereo_ros.imaging.image_checks import depth_to_counts
    from worldstereo_ros.io.images import write_image
    from worldstereo_ros.io.posed_sequences import write_sequence
    from worldstereo_ros.io.results_folder import ResultsFolder
    from worldstereo_ros.io.view_labels import write_provenance
    from worldstereo_ros.panorama.imagine import imagine_panorama, observe_panorama
    from worldstereo_ros.pipelines.auto import load_pipeline
    from worldstereo_ros.utils.atomic_files import write_json
    from worldstereo_ros.visualization.contact_sheet import panorama_sheet
    from worldstereo_ros.world import WorldModel

    console = Console()
    if not np.isfinite(at).all():
        raise InputError(f"The position {at} is not finite; three numbers in metres were expected: x y z.")
    check_model_options(model, variant=variant, prompt=prompt)
    if distance is not None and depth_model not in ("", NONE):
        raise InputError(
            "--distance gives the distances that --depth-model would estimate; one of the two was expected."
        )
    if distance is None and depth_model == NONE:
        raise InputError("There are no distances: --depth-model none estimates none. Give them with --distance.")
    results = ResultsFolder(out, PANORAMA_NAMES, sources=[source, distance])
    image, notes = read_panorama(source)
    for note in notes:
        console.print(escape(note), highlight=False)
    distances = None if distance is None else read_distance(distance)
    if distance is not None and distances is not None and (warning := doubt_distance(distance, distances)):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    estimator = load_depth_estimator(depth_model, device) if distances is None else None
    pipeline = load_pipeline(model, device, variant=variant)
    world = WorldModel(pipeline, depth_estimator=estimator, device=device)
    with console.status("observing") as status:
        observed = observe_panorama(world, image, distances)
        console.print(f"[bold]{escape(source.name)}[/]: {observed.views} views, {point_counts(world.cloud)}")
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
    result = imagined.panorama
    with results:
        world.save(out / MAP_FILE)
        write_image(out / "panorama.png", result.image)
        write_image(out / "observed.png", result.observed.astype(np.uint8) * 255)
        write_image(out / "estimated.png", result.estimated.astype(np.uint8) * 255)
        write_provenance(out / "provenance.png", result.provenance)
        if result.distance is not None:
            write_image(out / "distance.png", depth_to_counts(result.distance))
        write_sequence(out / IMAGINED_FOLDER, imagined.views)
        write_image(out / "sheet.png", panorama_sheet(image, imagined))
        write_json(out / "figures.json", _figures(imagined, observed, at=at, model=model, seconds=seconds))
    console.print(
        f"Of the panorama, {result.observed.mean():.0%} is observed, {result.estimated.mean():.0%} estimated, and "
        f"{1 - (result.observed | result.estimated).mean():.0%} imagined."
    )
    closure = imagined.closure
    if closure is not None:
        console.print(
            f"Closure of the ring of views: {closure.seam:.2f} grey levels of difference at the closing seam, "
            f"{closure.inner:.2f} at the other seams (ratio {closure.ratio:.2f})."
        )
        if closure.distance_seam is not None and closure.distance_inner is not None:
            console.print(
                f"Distances differ by {closure.distance_seam:.1%} at the closing seam, by {closure.distance_inner:.1%} "
                "at the other seams."
            )
    sheet, saved = escape(str(out / "sheet.png")), escape(quote(str(out / MAP_FILE)))
    console.print(f"See [bold]{sheet}[/]; in the browser: worldstereo view {saved}")


def _figures(
    imagined: ImaginedPanorama, observed: ObservedPanorama, *, at: Sequence[float], model: str, seconds: float
) -> dict[str, Any]:
    """What figures.json holds."""
    figures: dict[str, Any] = {
        "at": list(at),
        "model": model,
        "views": len(imagined.views),
        "seconds": round(seconds, 2),
        "observed": round(float(imagined.panorama.observed.mean()), 4),
        "estimated": round(float(imagined.panorama.estimated.mean()), 4),
    }
    if observed.estimated is not None and observed.estimated.agreement is not None:
        figures["distance_agreement"] = asdict(observed.estimated.agreement)
    closure = imagined.closure
    if closure is not None:
        figures |= {"seam": closure.seam, "joint": closure.inner, "ratio": closure.ratio}
        if closure.distance_seam is not None and closure.distance_inner is not None:
            figures |= {"distance_seam": closure.distance_seam, "distance_joint": closure.distance_inner}
    return figures


def read_panorama(path: Path) -> tuple[np.ndarray, list[str]]:
    """Reads a panorama, upright and at most `MAX_PANORAMA_PIXELS` large, which no view of it is finer than.

    Returns:
        (H, W, 3) uint8 RGB, and sentences for the user about what was done to it.

    Raises:
        ImageError: the file is missing, not an image, damaged, or larger than can be read at reduced size.
    """
    from worldstereo_ros.io.photos import read_photo, read_photo_header

    header, notes = read_photo_header(path), []
    # EXIF that lays a panorama on its side is wrong: cameras that take them are held in any way.
    upright = header.size == header.stored_size
    if upright and header.orientation != 1:
        notes.append(f"{path.name} is turned upright by its EXIF (orientation {header.orientation}).")
    image = read_photo(path, max_pixels=MAX_PANORAMA_PIXELS, upright=upright)
    width, height = header.stored_size
    if image.shape[:2] != (height, width):
        notes.append(
            f"{path.name} is {width}x{height}; it is read at {image.shape[1]}x{image.shape[0]}, which is finer than "
            "the views that are made of it."
        )
    return image, notes


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

    from worldstereo_ros.imaging.image_checks import MAX_DEPTH_M, check_size, clean_depth
    from worldstereo_ros.io.images import read_depth

    if path.suffix.lower() != ".npy":
        distance = read_depth(path)
    else:
        try:
            array = np.load(path, allow_pickle=False, mmap_mode="r")  # the header may declare more than there is
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"The distances {path} cannot be read: {_why_not(path, error)}") from None
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
            holds = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
            raise InputError(f"{path} holds {holds}; numbers (H, 2 H) were expected.")
        check_size(array.shape[1], array.shape[0], f"The array in {path}")
        distance = clean_depth(array)
    if not distance.any():
        raise InputError(f"{path} holds no distance between 0 and {MAX_DEPTH_M:.0f} m.")
    return distance


def doubt_distance(path: Path, distances: np.ndarray) -> str:
    """A warning if distances that `read_distance` read from a file seem to be in another unit; else empty."""
    from worldstereo_ros.geometry.depth_units import implausible_depth

    doubt = implausible_depth(distances)
    unit = "metres" if path.suffix.lower() == ".npy" else "millimetres"
    return doubt and f"The distance in {path} is implausible: {doubt}. It was read as {unit}; is it in another unit?"


def _why_not(path: Path, error: Exception) -> str:
    """Why a .npy file cannot be read, as the end of a sentence."""
    from worldstereo_ros.utils.file_kinds import explain_unreadable

    reason = getattr(error, "strerror", None) or first_line(error)
    return f"{reason.rstrip('.')}. {explain_unreadable(path, 'npy') if path.exists() else ''}".rstrip()
