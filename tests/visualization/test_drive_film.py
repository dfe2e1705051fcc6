"""The film of a drive: the map, the slow zone, the speed, and the words at the end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.visualization import drive_film
from worldstereo_ros.visualization.drive_film import DriveFilm
from worldstereo_ros.visualization.drive_recording import DriveRecording, DriveSample, MapSnapshot, PathChoice

CAMERA = Camera.from_fov(64, 48, 1.4)


def recording() -> DriveRecording:
    """A robot that drives 2 m along x, slowly in the second half; the map is 4 x 3 m, its right half imagined."""
    drive = DriveRecording("a test", 0.8, 0.2, 1.4, ((0.0, 0.0), (4.0, 3.0)), np.array([2.0, 2.0]))
    graded = np.zeros((30, 40), np.int8)
    source = np.zeros((30, 40), np.int8)
    source[:, 20:] = 100
    graded[:, 20:] = 10
    source[20:] = graded[20:] = -1
    slow = np.zeros((30, 40), np.int8)
    slow[:, 15:20] = 40
    graded[0], source[0] = 95, 0
    drive.maps.append(MapSnapshot(graded, source, slow, np.zeros(2), 0.1))
    drive.views.append(View(np.full((48, 64, 3), 90, np.uint8), CAMERA, np.eye(4), np.ones((48, 64), np.float32)))
    path = np.stack([np.linspace(0.2, 3.5, 30), np.full(30, 1.5)], axis=1)
    paths = {"middle": path, "left": path + np.array([0, 0.4])}
    drive.choices.append(PathChoice(0.0, paths, {"middle": 0.1, "left": 0.95}, "middle", "middle", "because"))
    for n in range(20):
        limit = 1.0 if n < 10 else 0.4
        drive.samples.append(
            DriveSample(0.1 * n, 0.2 + 0.1 * n, 1.5, 0.0, 0.8 * limit, limit, 0, -1, 0, 0, math.inf)
        )  # fmt: skip
    return drive


def colour_at(film: DriveFilm, frame: np.ndarray, x: float, y: float) -> np.ndarray:
    """The colour of a place of the map."""
    column, row = film._pixels(np.array([[x, y]]))[0] // 16
    return frame[drive_film.GAP + row, drive_film.VIEW_WIDTH + 2 * drive_film.GAP + column].astype(int)


def test_map_has_the_colours_of_what_is_seen_imagined_and_unknown():
    film = DriveFilm(recording())
    frame = film[0]
    assert frame.shape == (drive_film.HEIGHT, drive_film.WIDTH, 3)
    expected = {
        (0.5, 0.5): drive_film.FREE,
        (0.5, 0.05): drive_film.WALL,
        (1.0, 2.6): drive_film.UNSEEN,
        (4.2, 1.0): drive_film.UNSEEN,  # beyond the map
    }
    for place, colour in expected.items():
        np.testing.assert_allclose(colour_at(film, frame, *place), colour, atol=2, err_msg=str(place))
    imagined = colour_at(film, frame, 3.0, 0.5)
    assert np.abs(imagined - drive_film.IMAGINED_FREE).max() < 40
    red, green, blue = colour_at(film, frame, 1.72, 0.55)
    assert red > green + 30 < blue + 60  # the slow zone


def test_words_say_whether_the_robot_is_limited():
    film = DriveFilm(recording())
    chip = (slice(drive_film.GAP + 16, drive_film.GAP + 20), drive_film.VIEW_WIDTH + 2 * drive_film.GAP + 18)
    np.testing.assert_allclose(film[5][chip][0], drive_film.FAST, atol=1)
    np.testing.assert_allclose(film[15][chip][0], drive_film.SLOW, atol=1)


def test_curve_grows_with_the_drive():
    film = DriveFilm(recording())
    green = [(np.abs(film[n][-180:].astype(int) - drive_film.FAST).max(axis=2) < 12).sum() for n in (3, 8, 15)]
    assert green[0] < green[1] < green[2]


def test_summary_is_shown_at_the_end_and_frames_have_bounds():
    plain, told = DriveFilm(recording()), DriveFilm(recording(), ["It slowed down.", "0 collisions."])
    assert len(plain) == 20
    assert len(told) == 20 + drive_film.SUMMARY_FRAMES
    np.testing.assert_array_equal(told[7], plain[7])
    assert (told[-1] != plain[-1]).any()
    np.testing.assert_array_equal(told[-1], told[20])
    assert len(told[18:22]) == 4
    with pytest.raises(IndexError):
        plain[20]
