"""Paints what is left of the holes of a made eye with the trained network, in tiles around them.

Only pixels that no frame has seen change. A tile has the size of the images that the network was trained on. Tiles
overlap, and are faded into each other there: two tiles know different parts of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.models.stereo_refiner import (
    BLOCK_PX,
    RefinerHistory,
    StereoCondition,
    StereoRefiner,
    load_stereo_refiner,
)
from worldstereo_ros.pipelines.stereo.hole_masks import blend, in_view, network_share, wide_parts
from worldstereo_ros.pipelines.stereo.pipeline import HolePainter
from worldstereo_ros.pipelines.stereo.settings import GEOMETRIC, REFINER, SMALL, parse_published
from worldstereo_ros.pipelines.stereo.warp import WarpedEye
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import BUNDLED, bundled_folder

REFINER_FOLDER = Path("base") / REFINER  # of a checkpoint or of a training run
TILE_PX, OVERLAP_PX = (96, 128), 16  # height and width; of neighbouring tiles
BORDER_PX = 8  # by which images are extended, so that no side of a tile, where it paints worse, is in them
REFERENCE_MARGIN_PX = 64  # of the camera's image, beyond a tile's right side
TILES_AT_ONCE = 4
MIN_TILE_PX = 32  # tiles that are needed for fewer pixels are left out, and the fill kept
BAND = 1  # tokens beside what is painted that are updated; of more, none was seen to help


@dataclass
class _Tile:
    """What the frame before left behind in a tile."""

    frame: int
    history: RefinerHistory


class NetworkPainter:
    """Paints with a `StereoRefiner`; one frame after the other.

    Attributes:
        model: the network.
        name: for tables and files, and to tell runs with other weights from each other.
    """

    def __init__(self, model: StereoRefiner, name: str = SMALL) -> None:
        self.model, self.name = model, name
        self._tiles: dict[tuple[int, int], _Tile] = {}
        self._frame = 0

    def restart(self) -> None:
        """Forgets all frames, as at a cut."""
        self._tiles.clear()

    @torch.inference_mode()
    def paint(
        self, camera_image: np.ndarray, eye: WarpedEye, painted: np.ndarray, remembered: np.ndarray, *,
        left: bool = False, offset: float = 0.0,
    ) -> np.ndarray:  # fmt: skip
        """Paints holes.

        Args:
            camera_image: (H, W, 3) uint8 RGB of the camera.
            eye: the made eye without holes.
            painted: (H, W) bool, filled from the background alone; these are painted, but for narrow parts
                (`wide_parts`) and, unless the network knows them, those beyond the camera's image (`in_view`), and
                feathered where the fill continues beside them (`network_share`).
            remembered: (H, W) bool, filled from other frames.
            left: the made eye is the left one.
            offset: of converged eyes, see `warp.warp_to_eye`.

        Returns:
            (H, W, 3) uint8; pixels that are not `painted` are those of `eye`.
        """
        self._frame += 1
        if not self.model.config.sides:
            painted = painted & in_view(eye.disparity, offset, left=left)
        painted = wide_parts(painted)
        if not painted.any():
            return eye.image
        share = network_share(painted, eye.disparity)
        arrays = [camera_image, eye.image, painted, remembered, eye.disparity]
        if left:  # the network knows right eyes
            arrays = [np.ascontiguousarray(array[:, ::-1]) for array in arrays]
        device = self.model.out.weight.device
        reference, filled = (_image(array, device) for array in arrays[:2])
        masks = [torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)[None] for array in arrays[2:]]
        height, width = painted.shape
        # Small images are extended to a tile; the reference everywhere by what lies beyond the right side, too.
        below, right = (
            max(BORDER_PX, tile - side - BORDER_PX) for tile, side in zip(TILE_PX, (height, width), strict=True)
        )
        shift = round(offset)
        filled = _extend(filled, (BORDER_PX, right, BORDER_PX, below))
        masks = [_extend(mask, (BORDER_PX, right, BORDER_PX, below)) for mask in masks]
        sides = BORDER_PX + max(0, shift), right + REFERENCE_MARGIN_PX + max(0, -shift), BORDER_PX, below
        reference = _extend(reference, sides)
        inside = np.s_[..., BORDER_PX : BORDER_PX + height, BORDER_PX : BORDER_PX + width]
        needed = np.zeros(masks[0].shape[1:], bool)
        needed[inside] = arrays[2]
        total, weight = torch.zeros_like(filled), torch.zeros_like(masks[0])
        by_length: dict[int, list[tuple[int, int]]] = {}
        for corner in _by_work(find_tiles(needed, MIN_TILE_PX), masks[0][0]):
            known = self._tiles.get(corner)
            if known is None or known.frame != self._frame - 1:
                known = self._tiles[corner] = _Tile(self._frame, RefinerHistory())
            by_length.setdefault(len(known.history.tokens), []).append(corner)
        fading = fade_of_tile().to(device)
        for group in by_length.values():
            for first in range(0, len(group), TILES_AT_ONCE):
                part = group[first : first + TILES_AT_ONCE]
                with _reduced_precision(device):
                    made = self._paint_tiles(part, filled, masks, reference, max(0, -shift))
                for image, (y, x) in zip(made, part, strict=True):
                    at = np.s_[:, y : y + TILE_PX[0], x : x + TILE_PX[1]]
                    total[at] += fading * image
                    weight[at] += fading
        self._tiles = {at: tile for at, tile in self._tiles.items() if tile.frame == self._frame}
        made = torch.where(masks[0] * weight > 0, total / weight.clamp_min(1e-6), filled)[inside]
        image = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        if left:
            image = image[:, ::-1]
        return blend(eye.image, image, share)

    def _paint_tiles(
        self, places: list[tuple[int, int]], filled: torch.Tensor, masks: list[torch.Tensor], reference: torch.Tensor,
        shift: int,
    ) -> torch.Tensor:  # fmt: skip
        """(N, 3, h, w) painted tiles at places (y, x), whose histories have one length."""

        def cut(image: torch.Tensor, more: int = 0, begin: int = 0) -> torch.Tensor:
            h, w = TILE_PX
            return torch.stack([image[:, y : y + h, x + begin : x + begin + w + more] for y, x in places])[:, None]

        painted, remembered, disparity = (cut(mask) for mask in masks)
        condition = StereoCondition(
            cut(filled), painted, remembered, disparity, cut(reference, REFERENCE_MARGIN_PX, shift)
        )
        tiles = [self._tiles[place] for place in places]
        histories = [tile.history for tile in tiles]
        together = RefinerHistory(
            [_levels([history.tokens[i] for history in histories]) for i in range(len(histories[0].tokens))],
            [_levels([history.references[i] for history in histories]) for i in range(len(histories[0].references))],
        )
        made = self.model.refine(condition, history=together, band=BAND)[:, 0].float()
        for index, tile in enumerate(tiles):
            tile.frame = self._frame
            one = slice(index, index + 1)
            tile.history = RefinerHistory(
                [[level[one] for level in levels] for levels in together.tokens],
                [[level[one] for level in levels] for levels in together.references],
            )
        return made


def load_painter(name: str, device: str = "cpu") -> HolePainter | None:
    """Loads what paints the holes.

    Args:
        name: geometric (nothing paints), small (the bundled network), a folder of weights or of a training run, or
            svd:PATH,refiner:PATH (see `published`).
        device: torch device.

    Returns:
        The painter; None for geometric.

    Raises:
        InputError: the weights are not there.
        CheckpointError: they are damaged.
    """
    if name == GEOMETRIC:
        return None
    if name in BUNDLED:
        folder = bundled_folder(SMALL) / REFINER_FOLDER
        model = load_stereo_refiner(folder, device)
        if model is None:
            raise InputError(
                f"This installation has no weights of the stereo network ({folder}). Use the model geometric, or give "
                "the folder of a `worldstereo train stereo` run."
            )
        return NetworkPainter(model)
    if folders := parse_published(name):
        from worldstereo_ros.pipelines.stereo.published import StereoPipeline

        return StereoPipeline.from_pretrained(folders[0], refiner=folders[1], device=device)
    path = Path(name)
    inside = path / REFINER_FOLDER
    model = load_stereo_refiner(inside if inside.is_dir() else path, device)
    if model is None:
        raise InputError(
            f"The stereo model is '{name}'; {GEOMETRIC}, {SMALL}, or a folder of weights or of a training run, or "
            "svd:PATH,refiner:PATH was expected."
        )
    return NetworkPainter(model, str(path.absolute()))


def _levels(of_tiles: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(level) for level in zip(*of_tiles, strict=True)]


def _image(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device).permute(2, 0, 1).float() / 127.5 - 1


def _extend(image: torch.Tensor, sides: tuple[int, int, int, int]) -> torch.Tensor:
    """Repeats the border of (c, H, W)."""
    return functional.pad(image[None], sides, mode="replicate")[0] if any(sides) else image


@cache
def fade_of_tile() -> torch.Tensor:
    """(1, h, w) weights of a tile: 1, and falling towards its sides where tiles overlap, never to 0."""
    ramps = []
    for side in TILE_PX:
        place = torch.arange(side) + 0.5
        ramps.append((torch.minimum(place, side - place) / OVERLAP_PX).clamp(max=1))
    return torch.outer(*ramps)[None]


@cache
def _has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices by instructions of its own."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # PyTorch has no public question for it
    return probe is not None and bool(probe())


def _reduced_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or _has_fast_bfloat16())


def find_tiles(painted: np.ndarray, least: int = 1) -> list[tuple[int, int]]:
    """Tiles that have something to paint.

    Args:
        painted: (H, W) bool, at least as large as a tile.
        least: pixels that a tile is needed for.

    Returns:
        Corners (y, x) of tiles inside the image. Each painted pixel is in one, unless too few need that tile, and at
        least half of `OVERLAP_PX` away from those of its sides that are not the image's. The same place is in the same
        tiles in each frame.
    """
    found = []
    rows, columns = (_cores(side, tile) for side, tile in zip(painted.shape, TILE_PX, strict=True))
    for y, core_rows in rows:
        for x, core_columns in columns:
            if np.count_nonzero(painted[core_rows, core_columns]) >= least:
                found.append((y, x))
    return found


def _by_work(corners: list[tuple[int, int]], painted: torch.Tensor) -> list[tuple[int, int]]:
    """Tiles in the order of the pixels around what is painted: those of a batch wait for the one with the most."""
    band = cv2.dilate(painted.cpu().numpy(), np.ones((2 * BLOCK_PX + 1,) * 2, np.uint8))
    return sorted(corners, key=lambda at: band[at[0] : at[0] + TILE_PX[0], at[1] : at[1] + TILE_PX[1]].sum())


def _cores(side: int, tile: int) -> list[tuple[int, slice]]:
    """Tiles along an axis: where each begins, and the part that it is needed for."""
    starts = [min(first, side - tile) for first in range(0, side - OVERLAP_PX, tile - OVERLAP_PX)]
    starts = sorted(set(starts))
    cuts = [0, *(second + OVERLAP_PX // 2 for second in starts[1:]), side]
    return [(start, slice(a, b)) for start, a, b in zip(starts, cuts[:-1], cuts[1:], strict=True)]
