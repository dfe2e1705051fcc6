"""Gaussian splats as PLY in the layout of Kerbl et al. 2023, with the provenance as one more property.

Scales are stored as logarithms, opacities before the sigmoid. The provenance is a float: programs that read the rows of
such a file as floats alone would misread all that follows a byte.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.point_cloud_formats import MAX_HEADER_BYTES, Columns, read_columns, write_columns
from worldstereo_ros.rendering.gaussian_splats import HARMONICS, GaussianSplats
from worldstereo_ros.utils.errors import InputError

ARBITRARY_UNIT = "worldstereo metric false"  # comment of a file whose unit is not the metre
MAX_LOGIT = 16.0  # of an opacity; float32 has no opacity between this and 1


def write_splats_ply(path: Path, splats: GaussianSplats) -> None:
    """Writes a .ply file. Raises WriteError."""
    columns: Columns = {axis: splats.means[:, at] for at, axis in enumerate("xyz")}
    columns |= {name: np.zeros(len(splats), np.float32) for name in ("nx", "ny", "nz")}  # part of the layout, unused
    columns |= {f"f_dc_{at}": splats.harmonics[:, 0, at] for at in range(3)}
    rest = splats.harmonics[:, 1:].transpose(0, 2, 1).reshape(len(splats), -1)  # all of red, then green, then blue
    columns |= {f"f_rest_{at}": rest[:, at] for at in range(rest.shape[1])}
    columns["opacity"] = logit(splats.opacities)
    logarithms = np.log(splats.scales)
    columns |= {f"scale_{at}": logarithms[:, at] for at in range(3)}
    columns |= {f"rot_{at}": splats.quaternions[:, at] for at in range(4)}
    columns["provenance"] = splats.provenance.astype(np.float32)
    comments = ("provenance 1 imagined 2 estimated 3 observed", *(() if splats.metric else (ARBITRARY_UNIT,)))
    write_columns(path, columns, comments=comments)


def read_splats_ply(path: Path) -> GaussianSplats:
    """Reads a .ply file.

    Raises:
        CloudFileError: the file is damaged or truncated.
        InputError: it holds no splats, or invalid numbers.
    """
    columns = read_columns(path)
    wanted = [*"xyz", *(f"f_dc_{at}" for at in range(3)), "opacity", *(f"scale_{at}" for at in range(3))]
    wanted += [f"rot_{at}" for at in range(4)]
    if missing := [name for name in wanted if name not in columns]:
        raise InputError(
            f"{path} holds no Gaussian splats: it has no {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}."
        )
    count = len(columns["x"])
    if count == 0:
        raise InputError(f"{path} has no splats.")

    def stacked(names: list[str]) -> np.ndarray:
        return np.stack([columns[name].astype(np.float32) for name in names], axis=1)

    rest = sum(name.startswith("f_rest_") for name in columns)
    if rest % 3 or 1 + rest // 3 not in HARMONICS or any(f"f_rest_{at}" not in columns for at in range(rest)):
        raise InputError(f"{path} has {rest} further harmonics; 0, 9, 24 or 45 were expected.")
    harmonics = stacked([f"f_dc_{at}" for at in range(3)])[:, None]
    if rest:
        more = stacked([f"f_rest_{at}" for at in range(rest)]).reshape(count, 3, rest // 3).transpose(0, 2, 1)
        harmonics = np.concatenate([harmonics, more], axis=1)
    kinds = columns.get("provenance")
    if kinds is None or not np.isin(kinds, [int(kind) for kind in Provenance]).all():
        kinds = np.full(count, Provenance.UNKNOWN)
    with path.open("rb") as file:
        header = file.read(MAX_HEADER_BYTES).split(b"end_header", 1)[0]
    return GaussianSplats(
        stacked(list("xyz")),
        stacked([f"rot_{at}" for at in range(4)]),
        np.exp(stacked([f"scale_{at}" for at in range(3)])),
        sigmoid(columns["opacity"]),
        harmonics,
        kinds.astype(np.uint8),
        metric=f"comment {ARBITRARY_UNIT}".encode() not in header,
    )


def logit(opacities: np.ndarray) -> np.ndarray:
    """The numbers whose sigmoid the opacities are, float32, limited to `MAX_LOGIT`."""
    opacities = opacities.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(opacities) - np.log1p(-opacities), -MAX_LOGIT, MAX_LOGIT).astype(np.float32)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-values)), float32."""
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-values.astype(np.float64)))).astype(np.float32)
