"""Features of photographs and their matches, by pycolmap's SIFT, in a COLMAP database."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.reconstruction.guards import PairMatches
from worldstereo_ros.reconstruction.photographs import Photograph, Photographs
from worldstereo_ros.utils.errors import WorldStereoError

SEED = 1
MAX_EXHAUSTIVE = 60  # photographs; more are matched with those that look alike
NEIGHBOURS = 20  # photographs that look most alike, for each
EXTRACTED_AT_ONCE = 8  # photographs between two reports of the progress
SEQUENTIAL = 8  # photographs before and after, if they were taken one after the other
VOCABULARY, TRAINING_DESCRIPTORS = 64, 40_000  # words of the VLAD descriptors, and SIFT descriptors to learn them from


class RegistrationError(WorldStereoError, RuntimeError):
    """Photographs that cannot be registered."""


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of feature extraction and matching.

    Attributes:
        name: for messages.
        first_octave: -1 doubles the image first, which finds more features and takes four times as long.
        max_features: features per photograph.
        peak: peak threshold of SIFT; lower finds fainter features.
        affine: estimate affine shapes with domain-size pooling (Dong and Soatto 2015): robust, and slow.
        ratio: largest ratio of the distances of the best and the second best match.
        guided: match again along the epipolar lines that were found.
        min_inliers: verified matches that a pair needs.
    """

    name: str
    first_octave: int
    max_features: int
    peak: float = 0.02 / 3
    affine: bool = False
    ratio: float = 0.8
    guided: bool = False
    min_inliers: int = 15


SMALL_PX = 800  # longer side of photographs that are enlarged by the quick settings, too, since they have few features
FAST = FeatureSettings("fast", 0, 4000)
DEFAULT = FeatureSettings("default", -1, 8192)
RELAXED = FeatureSettings("relaxed", -1, 16384, 0.0025, affine=True, ratio=0.85, guided=True, min_inliers=10)


def load_pycolmap() -> Any:
    """Imports pycolmap, quiet but for errors. Raises RegistrationError if it is not installed."""
    try:
        import pycolmap
    except ImportError:
        raise RegistrationError(
            "Registration of photographs needs pycolmap: run pip install 'worldstereo_ros[reconstruct]'."
        ) from None
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)  # its errors are raised, too
    return pycolmap


def threads() -> int:
    """Number of threads that computations use, as for torch."""
    return max(1, torch.get_num_threads())


# --- extraction ------------------------------------------------------------------------------------------------------


def extract(
    photos: Photographs,
    database: Path,
    settings: FeatureSettings,
    *,
    shared_cameras: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the features of all photographs and their cameras into a database.

    Photographs whose features are in the database, from a run that was interrupted, are left as they are. Cameras
    whose intrinsics are known are PINHOLE; others are SIMPLE_RADIAL, with the focal length of EXIF if there is one.

    Args:
        photos: the photographs; their working copies lie in one folder.
        database: file, created if it is missing.
        settings: of the features.
        shared_cameras: photographs of one `camera_key` share their intrinsics; otherwise each has its own.
        on_progress: called with the number of photographs that are done and of all.
    """
    pycolmap = load_pycolmap()
    with open_database(database) as opened:
        camera_of = {image.name: int(image.camera_id) for image in opened.read_all_images()}
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = threads()
    options.use_gpu = False
    options.sift.first_octave = -1 if _are_small(photos) else settings.first_octave
    options.sift.max_num_features = settings.max_features
    options.sift.peak_threshold = settings.peak
    options.sift.estimate_affine_shape = options.sift.domain_size_pooling = settings.affine
    groups = itertools.groupby(
        sorted(range(len(photos)), key=lambda i: (camera_group(photos[i], i, shared_cameras), i)),
        key=lambda i: camera_group(photos[i], i, shared_cameras),
    )
    folder, done = photos[0].file.parent, 0
    for _, members in groups:
        rows = list(members)
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model, reader.camera_params = _camera_parameters(photos[rows[0]])
        names = [photos[i].file.name for i in rows]
        camera_id = next((camera_of[name] for name in names if name in camera_of), -1)
        for first in range(0, len(names), EXTRACTED_AT_ONCE):
            some = names[first : first + EXTRACTED_AT_ONCE]
            if any(name not in camera_of for name in some):
                reader.existing_camera_id = camera_id
                pycolmap.extract_features(
                    database, folder, some, pycolmap.CameraMode.SINGLE, reader, options, pycolmap.Device.cpu
                )
            if camera_id < 0:
                with open_database(database) as opened:
                    camera_id = int(opened.read_image_with_name(some[0]).camera_id)
            done += len(some)
            if on_progress is not None:
                on_progress(done, len(photos))


def camera_group(photo: Photograph, number: int, shared: bool) -> str:
    """Photographs of one group share a camera in the database."""
    known = "" if photo.camera is None else repr(photo.camera)
    return f"{photo.camera_key} {known}" if shared or known else f"{photo.camera_key} {number}"


def _camera_parameters(photo: Photograph) -> tuple[str, str]:
    """(COLMAP camera model, its parameters; empty = to be guessed)."""
    camera = photo.camera
    if camera is not None:
        values: tuple[float, ...] = (camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5)  # centres at halves
        return "PINHOLE", ",".join(repr(float(value)) for value in values)
    if photo.focal_px is not None:
        values = (photo.focal_px, photo.width / 2, photo.height / 2, 0.0)
        return "SIMPLE_RADIAL", ",".join(repr(float(value)) for value in values)
    return "SIMPLE_RADIAL", ""


# --- pairs -----------------------------------------------------------------------------------------------------------


def match(
    database: Path,
    pairs: Sequence[tuple[str, str]],
    settings: FeatureSettings,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Matches pairs of images and verifies the matches geometrically.

    Args:
        database: database with features.
        pairs: names of images.
        settings: of the matching.
        on_progress: called with the number of matched pairs and of all.
    """
    pycolmap = load_pycolmap()
    options = pycolmap.FeatureMatchingOptions()
    options.num_threads = threads()
    options.use_gpu = False
    options.guided_matching = settings.guided
    options.sift.max_ratio = settings.ratio
    verification = pycolmap.TwoViewGeometryOptions()
    verification.min_num_inliers = settings.min_inliers
    verification.ransac.random_seed = SEED
    listing = database.with_suffix(".pairs.txt")
    step = max(100, len(pairs) // 20)
    for first in range(0, len(pairs), step):
        listing.write_text("".join(f"{one} {other}\n" for one, other in pairs[first : first + step]), encoding="utf-8")
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = listing
        pycolmap.match_image_pairs(database, options, pairing, verification, pycolmap.Device.cpu)
        if on_progress is not None:
            on_progress(min(first + step, len(pairs)), len(pairs))
    listing.unlink(missing_ok=True)


def choose_pairs(photos: Photographs, database: Path) -> list[tuple[int, int]]:
    """Pairs of photographs to match: all of up to `MAX_EXHAUSTIVE`; of more, those that look alike.

    Likeness is that of VLAD descriptors (Jégou et al., CVPR 2010) over the SIFT features, with a vocabulary of these
    photographs themselves, so that no file of a vocabulary is needed. Photographs that were taken one after the other
    are matched with their neighbours in time, too.
    """
    count = len(photos)
    if count <= MAX_EXHAUSTIVE:
        return list(itertools.combinations(range(count), 2))
    with open_database(database) as opened:
        likeness = vlad_similarity(_StoredDescriptors(opened, [photo.file.name for photo in photos]))
    np.fill_diagonal(likeness, -np.inf)
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBOURS]
    pairs = {(min(i, int(j)), max(i, int(j))) for i in range(count) for j in nearest[i]}
    if photos.ordered:
        pairs |= {(i, j) for i in range(count) for j in range(i + 1, min(i + 1 + SEQUENTIAL, count))}
    return sorted(pairs)


def vlad_similarity(descriptors: Sequence[np.ndarray]) -> np.ndarray:
    """(N, N) cosine similarities of the VLAD descriptors of N images.

    Args:
        descriptors: (K_i, 128) SIFT descriptors of each image, read twice; an image may have none.
    """
    random = np.random.default_rng(SEED)
    share = max(1, TRAINING_DESCRIPTORS // max(1, len(descriptors)))
    sample = [one[random.permutation(len(one))[:share]] for one in descriptors if len(one)]
    stacked = np.concatenate(sample) if sample else np.zeros((0, 128), np.uint8)
    words = min(VOCABULARY, len(stacked))
    if words == 0:
        return np.zeros((len(descriptors), len(descriptors)))
    training = _root(stacked)
    cv2.setRNGSeed(SEED)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1e-3)
    start = np.zeros((len(training), 1), np.int32)
    _, _, centres = cv2.kmeans(training, words, start, criteria, 1, cv2.KMEANS_PP_CENTERS)
    vectors = np.stack([_vlad(_root(one), centres) for one in descriptors])
    return vectors @ vectors.T


def _vlad(descriptors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Sums of the residuals to the nearest words, normalised for each word and as a whole (Arandjelović 2013)."""
    if not len(descriptors):
        return np.zeros(centres.size, np.float32)
    distance = (centres**2).sum(axis=1) - 2 * descriptors @ centres.T
    word = distance.argmin(axis=1)
    sums = np.zeros_like(centres)
    np.add.at(sums, word, descriptors - centres[word])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    vector = sums.reshape(-1)
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


def _root(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors of norm 1 as float32; COLMAP's are square roots already."""
    values = descriptors.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


# --- the database ----------------------------------------------------------------------------------------------------


@contextmanager
def open_database(path: Path) -> Iterator[Any]:
    """Opens a COLMAP database for reading."""
    database = load_pycolmap().Database.open(path)
    try:
        yield database
    finally:
        database.close()


def thorough_finds_no_more(photos: Photographs, path: Path) -> bool:
    """Whether `DEFAULT` would find the same features as `FAST` did: small photographs, none of which reached its limit.

    Args:
        photos: the photographs.
        path: the database of `FAST`.
    """
    if not _are_small(photos):
        return False
    with open_database(path) as database:
        return all(database.num_keypoints_for_image(i) < FAST.max_features for i in image_ids(database).values())


def _are_small(photos: Photographs) -> bool:
    return float(np.median([max(photo.width, photo.height) for photo in photos])) <= SMALL_PX


def image_ids(database: Any) -> dict[str, int]:
    """Numbers of the images by their names."""
    return {image.name: int(image.image_id) for image in database.read_all_images()}


class _StoredDescriptors(Sequence[np.ndarray]):
    """Descriptors of images, (K, 128) uint8 each, read on access: those of thousands do not fit into memory."""

    def __init__(self, database: Any, names: Sequence[str]) -> None:
        ids = image_ids(database)
        self._database, self._ids = database, [ids[name] for name in names]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index):
        return np.asarray(self._database.read_descriptors(self._ids[index]).data).reshape(-1, 128)


def read_matches(photos: Photographs, path: Path) -> dict[tuple[int, int], np.ndarray]:
    """Verified matches of all pairs.

    Returns:
        (i, j), i < j -> (M, 2, 2) float64 pixels (our convention) of the matches in photograph i and in photograph j.
    """
    pycolmap = load_pycolmap()
    found = {}
    with open_database(path) as database:
        ids = image_ids(database)
        number = {ids[photo.file.name]: i for i, photo in enumerate(photos)}
        keypoints = {i: _pixels(database.read_keypoints(image_id)) for image_id, i in number.items()}
        pair_ids, geometries = database.read_two_view_geometries()
        for pair_id, geometry in zip(pair_ids, geometries, strict=True):
            matches = np.asarray(geometry.inlier_matches).reshape(-1, 2)
            one, other = (number[int(image_id)] for image_id in pycolmap.pair_id_to_image_pair(pair_id))
            if not len(matches):
                continue
            pixels = np.stack([keypoints[one][matches[:, 0]], keypoints[other][matches[:, 1]]], axis=1)
            found[min(one, other), max(one, other)] = pixels if one < other else pixels[:, ::-1]
    return found


def _pixels(keypoints: Any) -> np.ndarray:
    """(K, 2) float64 pixels with centres at integers."""
    return np.asarray(keypoints, np.float64).reshape(-1, 6)[:, :2] - 0.5


def as_rays(
    pixels: dict[tuple[int, int], np.ndarray], calibrations: dict[int, CameraCalibration]
) -> dict[tuple[int, int], PairMatches]:
    """Matches as rays, of the pairs whose photographs both have a calibration (by their numbers)."""
    rays = {}
    for (one, other), both in pixels.items():
        if one in calibrations and other in calibrations:
            first = undistorted_rays(both[:, 0], calibrations[one])
            rays[one, other] = PairMatches(first, undistorted_rays(both[:, 1], calibrations[other]))
    return rays


def undistorted_rays(pixels: np.ndarray, calibration: CameraCalibration) -> np.ndarray:
    """(M, 3) float64 rays with z = 1 of pixels (M, 2) of a photograph."""
    camera = calibration.camera
    if calibration.coefficients.size:
        points = cv2.undistortPoints(
            np.ascontiguousarray(pixels, np.float64).reshape(-1, 1, 2), camera.matrix, calibration.coefficients
        ).reshape(-1, 2)
    else:
        points = (pixels - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    return np.column_stack([points, np.ones(len(points))])
