"""A place as 3-D Gaussians, with the provenance of each: what the rasteriser draws and the files hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.rendering.gaussians import SH_0, GaussianRendering, colours_from_harmonics, render_gaussians
from worldstereo_ros.utils.errors import InputError

HARMONICS = (1, 4, 9, 16)  # numbers of coefficients of degree 0 to 3


@dataclass(frozen=True)
class GaussianSplats:
    """N Gaussians in the world frame.

    Attributes:
        means: (N, 3) float32 centres, metres (or the unit of the place, if `metric` is False).
        quaternions: (N, 4) float32 unit quaternions w, x, y, z.
        scales: (N, 3) float32 standard deviations along the rotated axes, above 0, unit of the centres.
        opacities: (N,) float32 in 0..1.
        harmonics: (N, K, 3) float32 coefficients of the colour, K = 1, 4, 9 or 16; see `colours_from_harmonics`.
        provenance: (N,) uint8 values of `Provenance`: of what it was made from. Unknown where a file does not say it.
        metric: lengths are in metres.

    Raises:
        InputError: shapes do not fit, or a number is invalid.
    """

    means: np.ndarray
    quaternions: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    harmonics: np.ndarray
    provenance: np.ndarray
    metric: bool = True

    def __post_init__(self) -> None:
        count = len(np.atleast_1d(self.means))
        coefficients = self.harmonics.shape[1] if np.ndim(self.harmonics) == 3 else 0
        shapes = {
            "means": (count, 3), "quaternions": (count, 4), "scales": (count, 3), "opacities": (count,),
            "harmonics": (count, coefficients, 3), "provenance": (count,),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = np.asarray(getattr(self, name))
            if array.shape != shape or (name == "harmonics" and coefficients not in HARMONICS):
                wanted = f"({count}, {' or '.join(map(str, HARMONICS))}, 3)" if name == "harmonics" else shape
                raise InputError(f"The splats' {name} have shape {array.shape}; {wanted} was expected.")
            array = np.ascontiguousarray(array, dtype=np.uint8 if name == "provenance" else np.float32)
            object.__setattr__(self, name, array)
            if array.dtype == np.float32 and not np.isfinite(array).all():
                bad = int(np.flatnonzero(~np.isfinite(array.reshape(count, -1)).all(axis=1))[0])
                raise InputError(f"The splats' {name} have a number that is not finite in splat {bad}.")
        if count and self.provenance.max() > Provenance.OBSERVED:
            raise InputError(f"The splats' provenance has the value {self.provenance.max()}; 0 to 3 were expected.")
        if (self.scales <= 0).any():
            raise InputError(f"{int((self.scales <= 0).any(axis=1).sum())} splats have a scale that is not above 0.")
        if ((self.opacities < 0) | (self.opacities > 1)).any():
            raise InputError("The splats' opacities are not all from 0 to 1.")
        norms = np.linalg.norm(self.quaternions, axis=1, keepdims=True)
        if (norms < 1e-6).any():
            raise InputError(f"{int((norms < 1e-6).sum())} splats have a quaternion of length 0.")
        # Unit quaternions stay as they are, so that a file keeps its numbers.
        unit = np.where(np.abs(norms - 1) > 1e-6, self.quaternions / norms, self.quaternions)
        object.__setattr__(self, "quaternions", unit.astype(np.float32))

    def __len__(self) -> int:
        return len(self.means)

    @property
    def colours(self) -> np.ndarray:
        """(N, 3) uint8 RGB, of all directions together."""
        return np.rint(255 * np.clip(0.5 + SH_0 * self.harmonics[:, 0], 0, 1)).astype(np.uint8)

    @property
    def rotations(self) -> np.ndarray:
        """(N, 3, 3) float64 rotations."""
        from scipy.spatial.transform import Rotation

        if len(self) == 0:
            return np.zeros((0, 3, 3))
        return Rotation.from_quat(self.quaternions[:, [1, 2, 3, 0]].astype(np.float64)).as_matrix()

    @property
    def covariances(self) -> np.ndarray:
        """(N, 3, 3) float32 covariances."""
        axes = self.rotations * self.scales[:, None].astype(np.float64)
        return (axes @ axes.transpose(0, 2, 1)).astype(np.float32)

    def subset(self, kept: np.ndarray) -> GaussianSplats:
        """The splats at `kept`: (N,) bool or (M,) indices."""
        names = ("means", "quaternions", "scales", "opacities", "harmonics", "provenance")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    @torch.no_grad()
    def render(
        self,
        camera: Camera,
        world_from_camera: np.ndarray,
        *,
        background: Sequence[float] = (0.0, 0.0, 0.0),
        near: float = 0.01,
        device: str | torch.device = "cpu",
    ) -> GaussianRendering:
        """Renders the splats into a camera; arguments are those of `render_gaussians`.

        Raises:
            InputError: the harmonics are of a degree above 1.
            GaussianBackendError: the device is a GPU, and gsplat is not installed.
        """
        means, quaternions, scales, opacities, harmonics = (
            torch.from_numpy(array).to(device)
            for array in (self.means, self.quaternions, self.scales, self.opacities, self.harmonics)
        )
        colours = colours_from_harmonics(harmonics, means, world_from_camera[:3, 3])
        return render_gaussians(
            means, quaternions, scales, opacities, colours, camera, world_from_camera, background=background, near=near
        )

    @torch.no_grad()
    def render_provenance(
        self, camera: Camera, world_from_camera: np.ndarray, *, min_alpha: float = 0.5, near: float = 0.01
    ) -> np.ndarray:
        """Renders which class of splats each pixel shows.

        Args:
            camera, world_from_camera, near: see `render`.
            min_alpha: pixels that the splats cover less are unknown.

        Returns:
            (H, W) uint8 values of `Provenance`: the class that contributes most to the pixel.
        """
        # The shares of the three classes take the place of the colours.
        shares = np.eye(4, dtype=np.float32)[self.provenance][:, 1:]
        means, quaternions, scales, opacities, colours = (
            torch.from_numpy(array) for array in (self.means, self.quaternions, self.scales, self.opacities, shares)
        )
        image = render_gaussians(means, quaternions, scales, opacities, colours, camera, world_from_camera, near=near)
        classes = image.colour.argmax(-1).to(torch.uint8) + 1
        known = (image.alpha >= min_alpha) & (image.colour.amax(-1) > 0)
        return torch.where(known, classes, 0).to(torch.uint8).numpy()
