"""Gaussian splats of a place: from its cloud, then fitted to the photographs that were taken there.

A point becomes a flat disc along the surface, as large as the distance to its neighbours. The discs are then fitted to
the views by gradient descent (Kerbl et al. 2023): absolute difference and D-SSIM, with a gain and an offset for each
view, since photographs differ in exposure. A splat keeps the provenance of the point it was made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.point_clouds import ColouredCloud
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.reconstruction.splat_loss import Target, photometric_loss
from worldstereo_ros.reconstruction.surface_normals import surface_neighbourhood
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats
from worldstereo_ros.rendering.gaussians import SH_0, colours_from_harmonics, render_gaussians
from worldstereo_ros.utils.errors import InputError

MAX_SPLATS = 150_000
DISC_SIGMA = 0.6  # standard deviation of a disc along the surface, in distances between neighbours
DISC_FLATNESS = 0.15  # standard deviation along the normal, in those along the surface
START_OPACITY = 0.7
MAX_TARGET_BYTES = 3 * 2**30  # of the photographs as numbers; those of large sets are computed at every step
NEAR_SHARE = 0.02  # of the median distance of the splats from the cameras: nearer splats are not drawn


class SurfaceCloud(ColouredCloud, Protocol):
    """Arrays that splats are made from; `CloudMemory` has them."""

    @property
    def spacing(self) -> np.ndarray:
        """(N,) float32 distance between neighbours."""


@dataclass(frozen=True)
class SplatSettings:
    """How splats are fitted.

    Attributes:
        steps: number of steps; one view each.
        seconds: the fit ends after this time as well; None for no limit. The rates fall with the time used, so that a
            fit that is cut short is a whole one with fewer steps.
        harmonics_degree: 0 for one colour from everywhere, 1 for colours that change with the direction.
        coarse_share: share of the steps, from the first, that use views of half the size.
        densify_share: share of the splats that are split in two, where the fit pulls most, each time; 0 for never.
        max_splats: number up to which splats are split.
        imagined_weight: weight of imagined pixels, beside 1 of those that a camera saw.
        offset_rate, scale_rate, rotation_rate, opacity_rate, colour_rate, exposure_rate: learning rates of Adam; of the
            centres in distances between neighbours.
        seed: of the order of the views.
    """

    steps: int = 1500
    seconds: float | None = 240.0
    harmonics_degree: int = 0
    coarse_share: float = 0.35
    densify_share: float = 0.05
    max_splats: int = 2 * MAX_SPLATS
    imagined_weight: float = 0.2
    offset_rate: float = 0.02
    scale_rate: float = 0.01
    rotation_rate: float = 0.004
    opacity_rate: float = 0.05
    colour_rate: float = 0.012
    exposure_rate: float = 0.004
    seed: int = 0


@dataclass(frozen=True)
class SplatFit:
    """The result of a fit.

    Attributes:
        splats: the fitted splats.
        gains, offsets: (V, 3) of each view: its photograph is about gain * render + offset, in 0..1; their means over
            the views are 1 and 0.
        losses: loss of each step.
        seconds: time that the fit took.
    """

    splats: GaussianSplats
    gains: np.ndarray
    offsets: np.ndarray
    losses: tuple[float, ...] = field(repr=False, default=())
    seconds: float = 0.0


# --- from a cloud -----------------------------------------------------------------------------------------------------


def splats_from_cloud(
    cloud: SurfaceCloud, *, max_splats: int = MAX_SPLATS, normals: np.ndarray | None = None, metric: bool = True
) -> GaussianSplats:
    """Makes a flat disc of each point, along the surface.

    Args:
        cloud: points with colours, provenance and spacing, such as a `CloudMemory`.
        max_splats: a cloud of more points is thinned first; normals are estimated anew then.
        normals: (N, 3) unit vectors; None = from the neighbours of each point.
        metric: lengths are in metres.

    Raises:
        InputError: the cloud has no points with finite coordinates, or arrays do not fit.
    """
    arrays = {name: np.asarray(getattr(cloud, name)) for name in ("points", "colours", "provenance", "spacing")}
    finite = np.isfinite(arrays["points"]).all(axis=1) if arrays["points"].ndim == 2 else np.zeros(0, bool)
    if not finite.any():
        raise InputError("The cloud has no points with finite coordinates, so no splats can be made from it.")
    if max_splats < 1:
        raise InputError(f"max_splats is {max_splats}; at least 1 was expected.")
    arrays = {name: array[finite] for name, array in arrays.items()}
    if normals is not None:
        normals = np.asarray(normals, np.float64)
        if normals.shape != (len(finite), 3):
            raise InputError(f"The normals have shape {normals.shape}; {(len(finite), 3)} was expected.")
        normals = normals[finite]
    if len(arrays["points"]) > max_splats:
        arrays, normals = _thinned(arrays, max_splats), None
    distance, found, planarity = surface_neighbourhood(arrays["points"], arrays["spacing"])
    normals = found if normals is None else normals
    sigma = DISC_SIGMA * distance
    # A scattered neighbourhood, as of leaves, has no surface: its splats are round.
    flat = DISC_FLATNESS + (1 - DISC_FLATNESS) * (1 - planarity)
    return GaussianSplats(
        arrays["points"],
        _rotations_to(normals),
        np.stack([sigma, sigma, sigma * flat], axis=1),
        np.full(len(sigma), START_OPACITY),
        ((arrays["colours"].astype(np.float32) / 255 - 0.5) / SH_0)[:, None],
        arrays["provenance"],
        metric=metric,
    )


def _thinned(arrays: dict[str, np.ndarray], max_splats: int) -> dict[str, np.ndarray]:
    """At most `max_splats` points: those of a voxel become one, of the highest class among them."""
    count = len(arrays["points"])
    voxel = float(np.median(arrays["spacing"])) * np.sqrt(count / max_splats)
    while True:
        # Large coordinates are moved to the origin: the voxels of a memory reach a million from it.
        origin = np.median(arrays["points"].astype(np.float64), axis=0).astype(np.float32)
        memory = CloudMemory(voxel_size=voxel, max_points=count)
        memory.insert_points(
            arrays["points"] - origin, arrays["colours"], np.maximum(arrays["provenance"], Provenance.IMAGINED),
            spacing=np.maximum(arrays["spacing"], np.float32(voxel)),
        )  # fmt: skip
        if len(memory) <= max_splats:
            names = ("colours", "provenance", "spacing")
            return {"points": memory.points + origin} | {name: getattr(memory, name).copy() for name in names}
        voxel *= max(1.02, np.sqrt(len(memory) / max_splats))


def _rotations_to(normals: np.ndarray) -> np.ndarray:
    """(N, 4) quaternions w, x, y, z that turn the z axis to the normals, either way round."""
    normals = np.where(normals[:, 2:] < 0, -normals, normals)
    quaternions = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(len(normals))], axis=1)
    return quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)


# --- fitted to views --------------------------------------------------------------------------------------------------


def optimise_splats(
    splats: GaussianSplats,
    views: Sequence[View],
    settings: SplatSettings | None = None,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> SplatFit:
    """Fits splats to views.

    Args:
        splats: as they start, such as those of `splats_from_cloud`.
        views: photographs with their poses; imagined views count less (`SplatSettings.imagined_weight`).
        settings: see `SplatSettings`.
        on_step: called after each step with (number of the step from 1, share of the fit that is done in 0..1); an
            exception of it ends the fit.

    Raises:
        InputError: there are no views or no splats, a setting is out of range, units differ, or no view sees a splat.
    """
    settings = settings or SplatSettings()
    _check_fit(splats, views, settings)
    start, threads = time.monotonic(), torch.get_num_threads()
    fit = _Fit(splats, views, settings, threads)
    # Outside of the rasteriser, the arrays are so small that torch's threads wait for each other more than they work.
    torch.set_num_threads(1)
    try:
        losses = _run(fit, len(views), settings, start, on_step)
    finally:
        torch.set_num_threads(threads)
    gains, offsets = (values.detach().numpy().copy() for values in fit.exposures())
    return SplatFit(fit.result(), gains, offsets, tuple(losses), time.monotonic() - start)


def _run(
    fit: _Fit, count: int, settings: SplatSettings, start: float, on_step: Callable[[int, float], None] | None
) -> list[float]:
    """Takes the steps of a fit to `count` views; returns the losses."""
    order = np.random.default_rng(settings.seed)
    queue: list[int] = []
    losses: list[float] = []
    progress, next_split = 0.0, 0.3
    while progress < 1:
        if not queue:
            queue = order.permutation(count).tolist()
        losses.append(fit.step(queue.pop(), progress))
        used = 0.0 if settings.seconds is None else (time.monotonic() - start) / settings.seconds
        progress = min(1.0, max(len(losses) / settings.steps, used))
        if settings.densify_share and next_split <= progress < 0.75:
            fit.split()
            next_split += 0.1
        if on_step is not None:
            on_step(len(losses), progress)
    return losses


def _check_fit(splats: GaussianSplats, views: Sequence[View], settings: SplatSettings) -> None:
    if len(splats) == 0 or len(views) == 0:
        raise InputError(f"{len(splats)} splats and {len(views)} views came; at least one of each was expected.")
    if any(view.metric != splats.metric for view in views):
        raise InputError("The splats and some of the views have different units (metres, or an arbitrary one).")
    if settings.steps < 1 or (settings.seconds is not None and not settings.seconds > 0):
        raise InputError(f"steps is {settings.steps} and seconds {settings.seconds}; positive numbers were expected.")
    if settings.harmonics_degree not in (0, 1):
        raise InputError(f"harmonics_degree is {settings.harmonics_degree}; 0 or 1 was expected.")


class _Fit:
    """The parameters of a fit and their optimiser."""

    def __init__(self, splats: GaussianSplats, views: Sequence[View], settings: SplatSettings, threads: int) -> None:
        self.settings, self.metric, self.threads = settings, splats.metric, threads
        self.views = list(views)
        self.small = [view.resized(max(1, view.camera.width // 2), max(1, view.camera.height // 2)) for view in views]
        self.targets: dict[tuple[int, bool], Target] = {}
        colours = np.concatenate([view.image[::8, ::8].reshape(-1, 3) for view in views])
        self.background = tuple(float(value) for value in colours.mean(axis=0) / 255)
        centres = np.stack([view.world_from_camera[:3, 3] for view in views])
        some = splats.means[:: max(1, len(splats) // 2000)]
        distances = np.linalg.norm(some[:, None] - centres[None], axis=2)
        self.near = NEAR_SHARE * float(np.median(distances))
        coefficients = (settings.harmonics_degree + 1) ** 2
        harmonics = np.zeros((len(splats), coefficients, 3), np.float32)
        kept = min(coefficients, splats.harmonics.shape[1])
        harmonics[:, :kept] = splats.harmonics[:, :kept]
        self.provenance = splats.provenance
        spacing = splats.scales.max(axis=1, keepdims=True) / DISC_SIGMA
        opacities = np.clip(splats.opacities, 1e-3, 1 - 1e-3)
        self._set(
            origins=splats.means, spacing=spacing, offsets=np.zeros_like(splats.means), scales=np.log(splats.scales),
            rotations=splats.quaternions, opacities=np.log(opacities / (1 - opacities)), harmonics=harmonics,
        )  # fmt: skip
        self.gains = torch.zeros(len(views), 3, requires_grad=True)  # logarithms
        self.shifts = torch.zeros(len(views), 3, requires_grad=True)
        self.exposure_optimiser = torch.optim.Adam([self.gains, self.shifts], lr=settings.exposure_rate)

    def _weight(self, view: View) -> np.ndarray | None:
        if view.is_observation:
            return None
        weight = np.full(view.image.shape[:2], self.settings.imagined_weight, np.float32)
        if view.confidence is not None:
            weight *= view.confidence
        weight[view.observed_mask | view.estimated_mask] = 1
        return weight

    def _target(self, index: int, coarse: bool) -> Target:
        """The target of a view; kept for the next time while there is room."""
        key = (index, coarse)
        if key in self.targets:
            return self.targets[key]
        view = (self.small if coarse else self.views)[index]
        target = Target.of(view.image, self._weight(view))
        if sum(kept.image.nbytes for kept in self.targets.values()) < MAX_TARGET_BYTES // 3:
            self.targets[key] = target
        return target

    def _set(self, **arrays: np.ndarray) -> None:
        """Takes parameters as arrays, with a new optimiser: its moments belong to the splats before a split."""
        tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
        self.origins, self.spacing = tensors.pop("origins"), tensors.pop("spacing")
        self.parameters = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        settings = self.settings
        self.rates = {
            "offsets": settings.offset_rate, "scales": settings.scale_rate, "rotations": settings.rotation_rate,
            "opacities": settings.opacity_rate, "harmonics": settings.colour_rate,
        }  # fmt: skip
        groups = [{"params": [tensor], "name": name} for name, tensor in self.parameters.items()]
        self.optimiser = torch.optim.Adam(groups, lr=0.01, eps=1e-15, fused=True)
        self.pull = torch.zeros(len(self.origins))  # summed length of the derivatives by the offsets

    def activated(self) -> tuple[torch.Tensor, ...]:
        """(means, quaternions, scales, opacities, harmonics) as the rasteriser takes them."""
        p = self.parameters
        means = self.origins + self.spacing * p["offsets"]
        return means, p["rotations"], p["scales"].exp(), torch.sigmoid(p["opacities"]), p["harmonics"]

    def exposures(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(gains, offsets) (V, 3) of the views, 1 and 0 on average: the splats have the mean exposure."""
        return (self.gains - self.gains.mean(0)).exp(), self.shifts - self.shifts.mean(0)

    def step(self, index: int, progress: float) -> float:
        """One step on one view; returns the loss."""
        coarse = progress < self.settings.coarse_share
        view = (self.small if coarse else self.views)[index]
        target = self._target(index, coarse)
        means, quaternions, scales, opacities, harmonics = self.activated()
        colours = colours_from_harmonics(harmonics, means, view.world_from_camera[:3, 3])
        image = render_gaussians(
            means, quaternions, scales, opacities, colours, view.camera, view.world_from_camera,
            background=self.background, near=self.near, threads=self.threads,
        )  # fmt: skip
        gains, offsets = self.exposures()
        loss = photometric_loss(image.colour, gains[index], offsets[index], target)
        decay = 0.05**progress
        for group in self.optimiser.param_groups:
            group["lr"] = decay * self.rates[group["name"]]
        for optimiser in (self.optimiser, self.exposure_optimiser):
            optimiser.zero_grad()
        loss.backward()
        gradient = self.parameters["offsets"].grad
        if gradient is not None:
            self.pull += gradient.norm(dim=1)
        self.optimiser.step()
        self.exposure_optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def split(self) -> None:
        """Splits the splats that are pulled most into two halves along their longest axis."""
        arrays = {name: tensor.detach().numpy() for name, tensor in self.parameters.items()}
        count = len(self.origins)
        more = min(int(self.settings.densify_share * count), self.settings.max_splats - count)
        if more < 1:
            self.pull.zero_()
            return
        chosen = torch.topk(self.pull, more).indices.numpy()
        result = self.result()
        axes = result.rotations[chosen] * result.scales[chosen][:, None]
        longest = axes[np.arange(more), :, np.argmax(result.scales[chosen], axis=1)]
        arrays["scales"] = arrays["scales"].copy()
        arrays["scales"][chosen, np.argmax(result.scales[chosen], axis=1)] -= np.log(1.8)
        origins = result.means.copy()
        origins[chosen] -= 0.6 * longest.astype(np.float32)
        arrays["offsets"] = np.zeros_like(arrays["offsets"])
        arrays |= {"origins": origins, "spacing": self.spacing.numpy()}
        joined = {name: np.concatenate([array, array[chosen]]) for name, array in arrays.items()}
        joined["origins"][count:] += 1.2 * longest.astype(np.float32)
        self.provenance = np.concatenate([self.provenance, self.provenance[chosen]])
        self._set(**joined)

    @torch.no_grad()
    def result(self) -> GaussianSplats:
        """The splats as they are now."""
        means, quaternions, scales, opacities, harmonics = (tensor.numpy() for tensor in self.activated())
        return GaussianSplats(
            means.copy(), quaternions.copy(), np.maximum(scales, 1e-12), opacities, harmonics.copy(), self.provenance,
            metric=self.metric,
        )  # fmt: skip
