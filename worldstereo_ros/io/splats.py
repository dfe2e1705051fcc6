"""Files of Gaussian splats: PLY in the layout of Kerbl et al. 2023, SPZ, and glTF with KHR_gaussian_splatting.

| suffix | precision | provenance | readers |
| --- | --- | --- | --- |
| `.ply` | float32 | property `provenance` | most programs; larger |
| `.spz` | 8 to 24 bits a number | lost | 10 times smaller |
| `.glb`, `.gltf` | float32 | attribute `_PROVENANCE` | viewers of glTF; others show points |

All keep the world frame of the place. What a format cannot hold is refused or named here; nothing is changed silently.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldstereo_ros.io.gltf import GltfError
from worldstereo_ros.io.point_cloud_formats import CloudFileError
from worldstereo_ros.io.splats_gltf import read_splats_gltf, write_splats_gltf
from worldstereo_ros.io.splats_ply import read_splats_ply, write_splats_ply
from worldstereo_ros.io.splats_spz import read_splats_spz, write_splats_spz
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats
from worldstereo_ros.utils.errors import InputError, WorldStereoError

SUFFIXES = (".ply", ".spz", ".glb", ".gltf")
_READERS: dict[str, Callable[[Path], GaussianSplats]] = {
    ".ply": read_splats_ply, ".spz": read_splats_spz, ".glb": read_splats_gltf, ".gltf": read_splats_gltf,
}  # fmt: skip


class SplatFileError(WorldStereoError, ValueError):
    """A file of splats that cannot be read or written."""


def read_splats(path: str | Path) -> GaussianSplats:
    """Reads splats; the format follows from the suffix.

    Splats of unknown provenance, as of other programs and of .spz files, have `Provenance.UNKNOWN`; unless a file says
    that its unit is arbitrary, it is taken for metres.

    Raises:
        SplatFileError: another suffix, a damaged file, no splats in it, or gsply is missing (.spz).
    """
    path = Path(path)
    _check_suffix(path)
    try:
        return _READERS[path.suffix.lower()](path)
    except (InputError, CloudFileError, GltfError) as error:
        text = str(error)
        raise SplatFileError(text if str(path) in text else f"{path} cannot be read: {text}") from error


def write_splats(path: str | Path, splats: GaussianSplats, *, up: np.ndarray | None = None) -> None:
    """Writes splats atomically; the format follows from the suffix.

    Args:
        path: .ply, .spz, .glb or .gltf file.
        splats: at least one.
        up: (3,) up direction of the world; a glTF viewer shows it upwards then. The other formats have no such field.

    Raises:
        SplatFileError: another suffix, no splats, numbers that the format cannot hold, or gsply is missing (.spz).
        WriteError: the file cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    if len(splats) == 0:
        raise SplatFileError(f"There are no splats, so {path} was not written.")
    try:
        if path.suffix.lower() == ".ply":
            write_splats_ply(path, splats)
        elif path.suffix.lower() == ".spz":
            write_splats_spz(path, splats)
        else:
            write_splats_gltf(path, splats, up=up)
    except (InputError, GltfError) as error:
        raise SplatFileError(str(error)) from error


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise SplatFileError(f"{path} has the suffix '{path.suffix}'; one of {', '.join(SUFFIXES)} was expected.")
