"""Training clips whose memory is two to four photographs of a world, as `worldstereo reconstruct` has them.

Their poses are known. Their depth is what reconstruction finds: triangulated where they overlap and are textured,
continued along planes, elsewhere estimated by the depth network, with all its errors. Half of them were taken near the
path, the others anywhere in the world, and the path leads between and beyond them.

All clips of a batch are walks past the same photographs, since finding their depth takes as long as everything else.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.depth.estimators import DepthEstimator, load_depth_estimator
from worldstereo_ros.evaluation.given_photographs import FAILURES, reconstruct_given
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.reconstruction.dense import DEFAULT_PIXELS
from worldstereo_ros.reconstruction.fusion import fuse
from worldstereo_ros.training.data.clip_sampling import (
    NOISE_FREE_PROB,
    ClipBatch,
    assemble_clip,
    assign_references,
    fine_camera,
    sample_path,
)
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_files import FINE_STRIDE, RenderedWorld
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

MIN_PHOTOGRAPHS, MAX_PHOTOGRAPHS = 2, 4
NEAR_VIEWS = 3 * FINE_STRIDE  # a photograph near the path was taken at most so many views before or after it
EXPOSURE_DEVIATION, BALANCE_DEVIATION = 0.08, 0.02  # of the logarithm of the gains of a photograph
MAX_ATTEMPTS = 8  # at photographs that have any depth, before an error


def sample_photograph_clips(
    dataset: WorldDataset, count: int, frames: int, random: np.random.Generator, device: torch.device
) -> ClipBatch:
    """Samples clips of one size that share their photographs.

    Args:
        dataset: the worlds.
        count: number of clips.
        frames: keyframes of each, the start view included.
        random: random number generator.
        device: device of the tensors.

    Raises:
        InputError: no photographs with depth were found.
    """
    for _ in range(MAX_ATTEMPTS):
        world = dataset.sample_worlds(1, random)[0]
        world = world.mirrored() if random.random() < 0.5 else world
        paths = _sample_paths(world, count, frames, random)
        try:
            photographs = reconstruct_photographs(world, choose_photographs(world, paths[0], random))
        except FAILURES:
            continue
        break
    else:
        raise InputError(f"In {MAX_ATTEMPTS} attempts no photographs with depth were found in {dataset.folder}.")
    number = int(random.integers(1, min(len(photographs), frames - 1) + 1))
    keyframes = np.sort(random.choice(np.arange(1, frames), size=number, replace=False))
    clips = [_make_clip(world, path, photographs, keyframes, random, device) for path in paths]
    columns = {name: torch.stack([clip[name] for clip in clips]).to(device) for name in clips[0]}
    return ClipBatch(**columns, reference_index=torch.from_numpy(keyframes - 1).to(device))


def _sample_paths(world: RenderedWorld, count: int, frames: int, random: np.random.Generator) -> list[np.ndarray]:
    """Paths along the same walk; their first view is replaced by a photograph."""
    first = sample_path(world, frames, random)
    walk, paths = int(world.walk[first[1]]), [first]
    while len(paths) < count:
        path = sample_path(world, frames, random)
        if int(world.walk[path[1]]) == walk:
            paths.append(path)
    return paths


def choose_photographs(world: RenderedWorld, path: np.ndarray, random: np.random.Generator) -> list[int]:
    """Chooses two to four fine views: half of them, rounded up, near the path, the others anywhere.

    Args:
        world: the rendered world.
        path: (F,) views of the clip; the first does not count.
        random: random number generator.
    """
    fine = world.fine.numpy()
    count = int(random.integers(MIN_PHOTOGRAPHS, MAX_PHOTOGRAPHS + 1))
    near = fine[(fine >= path[1:].min() - NEAR_VIEWS) & (fine <= path[1:].max() + NEAR_VIEWS)]
    near = near[world.walk.numpy()[near] == world.walk.numpy()[path[1]]]
    chosen = [int(view) for view in random.permutation(near)[: (count + 1) // 2]]
    others = random.permutation(np.setdiff1d(fine, chosen))
    return chosen + [int(view) for view in others[: count - len(chosen)]]


def reconstruct_photographs(world: RenderedWorld, numbers: list[int]) -> dict[int, View]:
    """The photographs with the depth that reconstruction finds, by number of the view.

    Args:
        world: the rendered world.
        numbers: fine views, of which the images and poses are used alone.

    Raises:
        RegistrationError, DatasetError, InputError: no photograph has depth.
    """
    rows = {int(view): row for row, view in enumerate(world.fine)}
    poses = {number: world.pose[number].double().numpy() for number in numbers}
    given = []
    for number in numbers:
        image = np.ascontiguousarray(world.fine_image[rows[number]].permute(1, 2, 0).numpy())
        given.append(View(image, fine_camera(world.camera), poses[number]))
    with tempfile.TemporaryDirectory(prefix="worldstereo-") as folder:
        found = reconstruct_given(given, Path(folder), estimator=_depth_estimator(), max_pixels=DEFAULT_PIXELS).views
    numbered = {}
    for view in found:
        distances = [np.abs(poses[number] - view.world_from_camera).max() for number in numbers]
        numbered[numbers[int(np.argmin(distances))]] = view
    return numbered


def _make_clip(
    world: RenderedWorld,
    path: np.ndarray,
    photographs: dict[int, View],
    keyframes: np.ndarray,
    random: np.random.Generator,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """The tensors of a clip that starts from the photograph that shows most of it."""
    clean = random.random() < NOISE_FREE_PROB
    camera, poses = world.camera, world.pose.double().numpy()
    cloud, bank = fuse(list(photographs.values()))
    start = bank.best_start_view(camera, poses[path[1:]])
    path = path.copy()
    path[0] = next(number for number, view in photographs.items() if view is start)
    order = sorted(photographs, key=lambda number: number != path[0])
    views = [photographs[n] if clean or n == path[0] else _exposed(photographs[n], random) for n in order]
    if not clean:  # the points have the colours of their photographs
        cloud, _ = fuse(views)
    rendering = WorldModel(GeometricPipeline(), cloud, device=device).render_memory(
        fine_camera(camera), poses[path[1:]]
    )
    chosen = assign_references(world, path[keyframes], order)
    return assemble_clip(world, path, (views, rendering), chosen, random, clean=clean, imagined_references=False)


def _exposed(view: View, random: np.random.Generator) -> View:
    """The photograph with another exposure and white balance."""
    gain = np.exp(random.normal(0, EXPOSURE_DEVIATION) + random.normal(0, BALANCE_DEVIATION, size=3))
    return replace(view, image=np.clip(view.image * gain, 0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _depth_estimator() -> DepthEstimator | None:
    return load_depth_estimator("small")
