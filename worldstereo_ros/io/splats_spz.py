"""Gaussian splats as SPZ (Niantic), by gsply: a tenth of the size of a PLY, in steps of fixed size.

Positions have 24 bits for the whole place, opacities and colours 8, logarithms of scales 8 (steps of 6 %), rotations
about 0.1 degrees. Provenance and unit are not stored.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.point_cloud_formats import MAX_POINTS
from worldstereo_ros.io.splats_ply import logit, sigmoid
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats
from worldstereo_ros.utils.atomic_files import atomic_path
from worldstereo_ros.utils.errors import InputError

MAGIC = 0x5053474E
MAX_FRACTION_BITS = 20
MIN_LOG_SCALE, MAX_LOG_SCALE = -10.0, -10.0 + 255 / 16  # that the format holds: 4.5e-5 to 379
MAX_BYTES_PER_SPLAT = 9 + 1 + 3 + 3 + 4 + 3 * 15


def write_splats_spz(path: Path, splats: GaussianSplats) -> None:
    """Writes an .spz file.

    Scales below 4.5e-5 are stored as that: such a splat is flat in either case.

    Raises:
        InputError: gsply is missing, or a position or scale lies beyond what the format holds.
        WriteError: the file cannot be written.
    """
    gsply = _import_gsply()
    largest = float(np.abs(splats.means).max())
    bits = min(MAX_FRACTION_BITS, 22 - math.floor(math.log2(max(largest, 1e-6))))
    if bits < 1:
        raise InputError(f"A splat is {largest:.3g} from the origin; .spz holds up to 4e6. Write a .ply instead.")
    logarithms = np.log(splats.scales)
    if logarithms.max() > MAX_LOG_SCALE:
        raise InputError(
            f"A splat has a scale of {splats.scales.max():.3g}; .spz holds up to {math.exp(MAX_LOG_SCALE):.0f}. Write "
            "a .ply instead."
        )
    data = gsply.GSData.from_arrays(
        means=splats.means,
        scales=np.maximum(logarithms, MIN_LOG_SCALE),
        quats=splats.quaternions,
        opacities=logit(splats.opacities),
        sh0=np.ascontiguousarray(splats.harmonics[:, 0]),
        shN=np.ascontiguousarray(splats.harmonics[:, 1:]) if splats.harmonics.shape[1] > 1 else None,
        format="ply",
    )
    with atomic_path(path) as partial:
        gsply.write_spz(partial, data, version=3, fractional_bits=bits)


def read_splats_spz(path: Path) -> GaussianSplats:
    """Reads an .spz file.

    Raises:
        InputError: gsply is missing, or the file is damaged, truncated or too large.
    """
    gsply = _import_gsply()
    _check_size(path)
    try:
        data = gsply.read_spz(path)
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path} is damaged or no .spz file: {error}.") from None
    count = len(data.means)
    if count == 0:
        raise InputError(f"{path} has no splats.")
    harmonics = np.asarray(data.sh0, np.float32)[:, None]
    if data.shN is not None and np.size(data.shN):
        harmonics = np.concatenate([harmonics, np.asarray(data.shN, np.float32)], axis=1)
    return GaussianSplats(
        np.asarray(data.means),
        np.asarray(data.quats),
        np.exp(np.asarray(data.scales, np.float32)),
        sigmoid(np.asarray(data.opacities).reshape(-1)),
        harmonics,
        np.full(count, Provenance.UNKNOWN, np.uint8),
    )


def _check_size(path: Path) -> None:
    """Checks that the content is as long as the header says, before gsply unpacks all of it."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
            file.seek(0)
            if head[:2] != b"\x1f\x8b":
                if len(head) < 32 or struct.unpack_from("<I", head)[0] != MAGIC:
                    raise InputError(f"{path} is not an .spz file.")
                _check_count(path, struct.unpack_from("<I", head, 8)[0], path.stat().st_size * 1000)
                return
            unpacker, total, limit = zlib.decompressobj(31), 0, 16
            while total < limit and (chunk := file.read(1 << 20)):
                while chunk and total < limit:
                    part = unpacker.decompress(chunk, 1 << 22)
                    if total == 0 and len(part) >= 16:
                        magic, _, count = struct.unpack_from("<III", part)
                        if magic != MAGIC:
                            raise InputError(f"{path} is not an .spz file.")
                        _check_count(path, count, path.stat().st_size * 1100)
                        limit = 16 + count * MAX_BYTES_PER_SPLAT + (1 << 20)
                    total += len(part)
                    chunk = unpacker.unconsumed_tail
            if total >= limit:
                raise InputError(f"{path} unpacks to more than its header says; it is damaged.")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except zlib.error as error:
        raise InputError(f"{path} is damaged: {error}.") from None


def _check_count(path: Path, count: int, available: int) -> None:
    if count > MAX_POINTS or count * 19 > available:
        raise InputError(f"{path} declares {count:,} splats, more than its size allows; it is truncated or damaged.")


def _import_gsply() -> Any:
    try:
        import gsply
    except ImportError:
        raise InputError(
            ".spz files need gsply, which is not installed: pip install '.[reconstruct]'. Or use .ply or .glb."
        ) from None
    return gsply
