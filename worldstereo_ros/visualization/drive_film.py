"""The film of a drive: what the camera sees, what the node imagines, its map from above, and the speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import cv2
import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.visualization.drive_recording import DriveRecording, DriveSample, MapSnapshot
from worldstereo_ros.visualization.images import IMAGINED_COLOUR
from worldstereo_ros.visualization.text import draw_text, text_width

FPS = 20  # twice as fast as the drive, whose samples are 0.1 s apart
SUMMARY_FRAMES = 3 * FPS  # with the summary, after the last sample
WIDTH, HEIGHT, GAP = 1280, 720, 8
VIEW_WIDTH, VIEW_HEIGHT = 468, 348
CURVE_HEIGHT = 176
NIGHT, PANEL, INK, DIM = (18, 20, 26), (28, 31, 39), (236, 238, 242), (140, 146, 158)
FREE, WALL, UNSEEN = (226, 232, 240), (38, 44, 58), (52, 57, 68)
IMAGINED_FREE, IMAGINED_WALL = (250, 203, 150), (214, 106, 20)
SLOW, FAST, ROBOT, WAY, BAD_WAY = (232, 76, 61), (56, 190, 120), (37, 120, 240), (20, 150, 240), (220, 60, 70)
MAP_MARGIN_M = 0.45
OCCUPIED_FROM = 50  # percent; imagined cells are as dark as that is likely, up to `SURE_PERCENT`
SURE_PERCENT = 60.0
WORDS_HEIGHT = 56  # below the map


class DriveFilm(Sequence[np.ndarray]):
    """The frames of a film, one a sample and some of the summary, each drawn when it is asked for.

    Args:
        recording: the drive, with at least one sample, view and map.
        summary: sentences, shown at the end.
    """

    def __init__(self, recording: DriveRecording, summary: Sequence[str] = ()) -> None:
        self._drive, self._summary = recording, list(summary)
        self._last: np.ndarray | None = None  # the frame with the summary
        self._map_size = (WIDTH - VIEW_WIDTH - 3 * GAP, HEIGHT - CURVE_HEIGHT - 3 * GAP)
        plan_height = self._map_size[1] - WORDS_HEIGHT
        self._middle = np.array([0.5 * self._map_size[0], 0.5 * plan_height])
        (x0, y0), (x1, y1) = recording.bounds
        self._scale = min(self._map_size[0] / (x1 - x0 + 2 * MAP_MARGIN_M), plan_height / (y1 - y0 + 2 * MAP_MARGIN_M))
        self._centre = 0.5 * np.array([x0 + x1, y0 + y1])
        self._map: tuple[int, np.ndarray] | None = None  # the newest map that was drawn
        self._curve = self._draw_curve()

    def __len__(self) -> int:
        return len(self._drive.samples) + (SUMMARY_FRAMES if self._summary else 0)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"Frame {index} of {len(self)}.")
        if index < len(self._drive.samples):
            return self._draw(index)
        if self._last is None:
            self._last = self._draw(len(self._drive.samples) - 1)
            _board(self._last, self._summary, (VIEW_WIDTH + 2 * GAP + 14, 64))
        return self._last

    def _draw(self, index: int) -> np.ndarray:
        sample = self._drive.samples[index]
        frame = np.full((HEIGHT, WIDTH, 3), NIGHT, np.uint8)
        place = slice(GAP, GAP + VIEW_HEIGHT), slice(GAP, GAP + VIEW_WIDTH)
        frame[place] = self._camera(sample)
        place = slice(HEIGHT - GAP - VIEW_HEIGHT, HEIGHT - GAP), slice(GAP, GAP + VIEW_WIDTH)
        frame[place] = self._imagined(sample)
        left = VIEW_WIDTH + 2 * GAP
        width, height = self._map_size
        frame[GAP : GAP + height, left : left + width] = self._plan(index)
        frame[HEIGHT - GAP - CURVE_HEIGHT : HEIGHT - GAP, left : left + width] = self._speed(index)
        return frame

    # --- the two views ---

    def _camera(self, sample: DriveSample) -> np.ndarray:
        image = _fitted(self._drive.views[sample.view].image)
        _label(image, "camera", f"{sample.seconds:4.1f} s")
        return image

    def _imagined(self, sample: DriveSample) -> np.ndarray:
        if sample.imagined < 0:
            image = np.full((VIEW_HEIGHT, VIEW_WIDTH, 3), PANEL, np.uint8)
            _label(image, "imagined", "not yet")
            return image
        view = self._drive.imagined[sample.imagined]
        image = _fitted(view.image)
        made = cv2.resize((view.provenance == Provenance.IMAGINED).astype(np.uint8), (VIEW_WIDTH, VIEW_HEIGHT))
        outlines, _ = cv2.findContours(made, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        tinted = (0.82 * image + 0.18 * np.array(IMAGINED_COLOUR)).astype(np.uint8)
        image = np.where(made[..., None] > 0, tinted, image)
        large = [outline for outline in outlines if cv2.contourArea(outline) > 120]
        cv2.drawContours(image, large, -1, IMAGINED_COLOUR, 1, cv2.LINE_AA)
        _label(image, "imagined, before it is seen", f"{1 - view.observed_fraction:.0%} imagined")
        return image

    # --- the map ---

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) int32 pixels of the map of world points (N, 2), with four bits of fraction."""
        flat = (np.atleast_2d(points) - self._centre) * (self._scale, -self._scale) + self._middle
        return np.rint(16 * flat).astype(np.int32)

    def _plan(self, index: int) -> np.ndarray:
        sample = self._drive.samples[index]
        if self._map is None or self._map[0] != sample.map:
            self._map = sample.map, self._draw_map(self._drive.maps[sample.map] if sample.map >= 0 else None)
        image = self._map[1].copy()
        self._draw_paths(image, sample)
        self._draw_trail(image, index)
        if sample.imagined >= 0:
            pose = self._drive.imagined[sample.imagined].world_from_camera
            self._draw_wedge(image, pose[:2, 3], math.atan2(pose[1, 2], pose[0, 2]), IMAGINED_COLOUR, 1.1)
        self._draw_wedge(image, np.array([sample.x, sample.y]), sample.yaw, FAST if sample.limit >= 1 else SLOW, 1.6)
        self._draw_robot(image, sample)
        self._draw_words(image, sample)
        return image

    def _draw_map(self, snapshot: MapSnapshot | None) -> np.ndarray:
        width, height = self._map_size
        image = np.full((height, width, 3), UNSEEN, np.uint8)
        if snapshot is None:
            return image
        cells = np.full((*snapshot.graded.shape, 3), UNSEEN, np.uint8)
        seen, made = snapshot.source == 0, snapshot.source > 0
        cells[seen], cells[seen & (snapshot.graded >= OCCUPIED_FROM)] = FREE, WALL
        share = np.clip(snapshot.graded[made] / SURE_PERCENT, 0, 1)[:, None]
        cells[made] = (1 - share) * np.array(IMAGINED_FREE) + share * np.array(IMAGINED_WALL)
        slow = (snapshot.slow > 0) & seen & (snapshot.graded < OCCUPIED_FROM)
        stripes = np.add.outer(np.arange(height), np.arange(width)) % 14 < 7
        # The centre of pixel (u, v) lies in the world at a + b (u, v); in cells from there.
        u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        x = (u - self._middle[0]) / self._scale + self._centre[0]
        y = (self._middle[1] - v) / self._scale + self._centre[1]
        j = np.floor((x - snapshot.low[0]) / snapshot.resolution).astype(int)
        i = np.floor((y - snapshot.low[1]) / snapshot.resolution).astype(int)
        inside = (i >= 0) & (j >= 0) & (i < cells.shape[0]) & (j < cells.shape[1])
        image[inside] = cells[i[inside], j[inside]]
        limited = np.zeros((height, width), bool)
        limited[inside] = slow[i[inside], j[inside]]
        weight = np.where(stripes, 0.42, 0.26)[..., None] * limited[..., None]
        return ((1 - weight) * image + weight * np.array(SLOW)).astype(np.uint8)

    def _draw_paths(self, image: np.ndarray, sample: DriveSample) -> None:
        if sample.choice < 0:
            return
        choice = self._drive.choices[sample.choice]
        here = np.array([sample.x, sample.y])
        for name, points in choice.paths.items():
            if name not in choice.collision:
                continue
            rest = points[int(np.argmin(np.linalg.norm(points - here, axis=1))) :]
            taken = name == choice.taken
            colour = WAY if taken else BAD_WAY if choice.collision[name] > 0.9 else DIM
            line = self._pixels(rest).reshape(-1, 1, 2)
            cv2.polylines(image, [line], False, colour, 4 if taken else 2, cv2.LINE_AA, 4)

    def _draw_trail(self, image: np.ndarray, index: int) -> None:
        past = self._drive.samples[: index + 1]
        pixels = self._pixels(np.array([[sample.x, sample.y] for sample in past]))
        for a, b, sample in zip(pixels[:-1], pixels[1:], past[1:], strict=True):
            share = min(1.0, sample.speed / self._drive.full_speed)
            colour = tuple(int((1 - share) * low + share * high) for low, high in zip(SLOW, FAST, strict=True))
            cv2.line(image, a.tolist(), b.tolist(), colour, 5, cv2.LINE_AA, 4)

    def _draw_wedge(
        self, image: np.ndarray, place: np.ndarray, yaw: float, colour: tuple[int, int, int], reach: float
    ) -> None:
        """The camera's angle of view, translucent, in place."""
        angles = yaw + np.linspace(-0.5, 0.5, 13) * self._drive.fov
        rim = place + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        corners = self._pixels(np.concatenate([place[None], rim]))
        layer = image.copy()
        cv2.fillPoly(layer, [corners.reshape(-1, 1, 2)], colour, cv2.LINE_AA, 4)
        cv2.addWeighted(layer, 0.28, image, 0.72, 0, image)
        cv2.polylines(image, [corners.reshape(-1, 1, 2)], True, colour, 1, cv2.LINE_AA, 4)

    def _draw_robot(self, image: np.ndarray, sample: DriveSample) -> None:
        place, radius = np.array([sample.x, sample.y]), self._drive.radius
        centre, size = self._pixels(place)[0].tolist(), round(16 * radius * self._scale)
        cv2.circle(image, centre, size + 32, (255, 255, 255), -1, cv2.LINE_AA, 4)
        cv2.circle(image, centre, size, ROBOT, -1, cv2.LINE_AA, 4)
        ahead = np.array([math.cos(sample.yaw), math.sin(sample.yaw)])
        side = np.array([-ahead[1], ahead[0]])
        nose = np.stack([place + 0.8 * radius * ahead, place - 0.45 * radius * ahead + 0.5 * radius * side,
                         place - 0.45 * radius * ahead - 0.5 * radius * side])  # fmt: skip
        cv2.fillPoly(image, [self._pixels(nose).reshape(-1, 1, 2)], (255, 255, 255), cv2.LINE_AA, 4)

    def _draw_words(self, image: np.ndarray, sample: DriveSample) -> None:
        width, height = self._map_size
        slow = sample.limit < 1
        what = f"SLOW: not seen ahead, {sample.limit:.0%} of the full speed" if slow else "full speed: the way was seen"
        _chip(image, what, (14, 14), SLOW if slow else FAST)
        legend = [
            (FREE, "seen, free"), (WALL, "seen, occupied"), (IMAGINED_FREE, "imagined, free"),
            (IMAGINED_WALL, "imagined, occupied"), (UNSEEN, "unknown"), (SLOW, "slow zone"),
        ]  # fmt: skip
        x = 14
        cv2.rectangle(image, (0, height - 30), (width, height), PANEL, -1)
        for colour, text in legend:
            cv2.rectangle(image, (x, height - 21), (x + 12, height - 9), colour, -1)
            cv2.rectangle(image, (x, height - 21), (x + 12, height - 9), DIM, 1)
            draw_text(image, text, (x + 18, height - 10), 0.42, INK)
            x += 34 + text_width(text, 0.42)
        if sample.choice >= 0:
            choice = self._drive.choices[sample.choice]
            chances = ", ".join(f"{name} {chance:.0%}" for name, chance in choice.collision.items())
            text = f"score_paths: collision {chances}; takes {choice.taken}"
            cv2.rectangle(image, (0, height - WORDS_HEIGHT), (width, height - 30), PANEL, -1)
            draw_text(image, text, (14, height - 37), 0.42, INK)

    # --- the speed ---

    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels x of the samples and y of speeds 0 and full, of the curve."""
        width = self._map_size[0]
        x = np.linspace(58, width - 18, max(2, len(self._drive.samples)))
        return x, np.array([CURVE_HEIGHT - 30.0, 34.0])

    def _draw_curve(self) -> np.ndarray:
        width = self._map_size[0]
        image = np.full((CURVE_HEIGHT, width, 3), PANEL, np.uint8)
        x, (low, high) = self._axes()
        limits = np.array([sample.limit for sample in self._drive.samples])
        for start, limit in zip(x, limits, strict=False):
            if limit < 1:
                left, right = int(start), int(start + (x[1] - x[0])) + 1
                image[int(high) : int(low), left:right] = np.array(SLOW) * 0.22 + np.array(PANEL) * 0.78
        for share in (0, 0.5, 1):
            y = int(low + share * (high - low))
            cv2.line(image, (58, y), (width - 18, y), (58, 63, 74), 1)
            draw_text(image, f"{share * self._drive.full_speed:.1f}", (18, y + 5), 0.42, DIM)
        draw_text(image, "speed m/s", (14, 20), 0.46, INK)
        draw_text(image, "what ~/speed_mask allows", (120, 20), 0.42, (244, 160, 150))
        for second in range(0, int(self._drive.samples[-1].seconds) + 1, 5):
            at = int(np.interp(second, [sample.seconds for sample in self._drive.samples], x[: len(limits)]))
            draw_text(image, f"{second} s", (at - 8, CURVE_HEIGHT - 10), 0.4, DIM)
        steps = np.stack([x[: len(limits)], low + limits * (high - low)], axis=1)
        cv2.polylines(image, [np.rint(16 * steps).astype(np.int32)], False, (244, 160, 150), 1, cv2.LINE_AA, 4)
        return image

    def _speed(self, index: int) -> np.ndarray:
        image = self._curve.copy()
        x, (low, high) = self._axes()
        speeds = np.array([sample.speed for sample in self._drive.samples[: index + 1]]) / self._drive.full_speed
        line = np.rint(16 * np.stack([x[: index + 1], low + speeds * (high - low)], axis=1)).astype(np.int32)
        cv2.polylines(image, [line], False, FAST, 3, cv2.LINE_AA, 4)
        cv2.circle(image, line[-1].tolist(), 16 * 5, (255, 255, 255), -1, cv2.LINE_AA, 4)
        cv2.line(image, (int(x[index]), int(high)), (int(x[index]), int(low)), DIM, 1)
        text = f"{self._drive.samples[index].speed:.2f} m/s"
        draw_text(image, text, (self._map_size[0] - 18 - text_width(text, 0.6, 2), 24), 0.6, INK, 2)
        return image


def _fitted(image: np.ndarray) -> np.ndarray:
    """An image that fills a panel of a view, cut at the edges."""
    scale = max(VIEW_WIDTH / image.shape[1], VIEW_HEIGHT / image.shape[0])
    width, height = math.ceil(scale * image.shape[1]), math.ceil(scale * image.shape[0])
    large = resize_image(image, width, height, enlarge=cv2.INTER_CUBIC)
    top, left = (height - VIEW_HEIGHT) // 2, (width - VIEW_WIDTH) // 2
    return np.ascontiguousarray(large[top : top + VIEW_HEIGHT, left : left + VIEW_WIDTH])


def _label(image: np.ndarray, text: str, right: str) -> None:
    """A dark strip with words at the top of an image, in place."""
    image[:28] = (0.35 * image[:28] + 0.65 * np.array(NIGHT)).astype(np.uint8)
    draw_text(image, text, (10, 19), 0.5, INK)
    draw_text(image, right, (image.shape[1] - 10 - text_width(right, 0.46), 19), 0.46, INK)


def _chip(image: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """White words on a coloured bar, in place."""
    x, y = place
    cv2.rectangle(image, (x, y), (x + text_width(text, 0.55, 1) + 24, y + 30), colour, -1)
    draw_text(image, text, (x + 12, y + 21), 0.55, (255, 255, 255), 1)


def _board(image: np.ndarray, lines: Sequence[str], place: tuple[int, int]) -> None:
    """Lines of text on a dark board, in place."""
    x, y = place
    width = max(text_width(line, 0.46) for line in lines) + 28
    part = image[y : y + 26 * len(lines) + 18, x : x + width]
    part[:] = (0.15 * part + 0.85 * np.array(NIGHT)).astype(np.uint8)
    for number, line in enumerate(lines):
        draw_text(image, line, (x + 14, y + 28 + 26 * number), 0.46, INK)
