"""Global-geometric memory (GGM): a bounded point cloud that fuses views and keeps the provenance of every point."""

from __future__ import annotations

import numpy as np
import torch

from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory import _lift_numba, _voxels_numba
from worldstereo_ros.memory._cloud_state import ARRAYS, CONFIDENCE_LEVELS, SETTINGS, upgrade_state, validate_state
from worldstereo_ros.memory.insert_report import InsertReport
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import run_in_threads, split_range

MAX_POINTS = 100_000_000
SWEEP_POINTS = 1 << 18  # points checked per insertion for radius, age and carving; bounds the cost


class CloudMemory:
    """A voxel-hashed point cloud with colour, weight, confidence, age and provenance, bounded in size.

    A voxel holds one point: the weighted mean of the pixels in it. The weight of a pixel is the cosine of the viewing
    angle, divided by the squared distance beyond one metre. An observation replaces an imagined point; an imagined
    point never changes, moves or evicts an observed one. When the memory is full, the least recently updated imagined
    points are evicted first, then the least recently updated observed points. The cost of an insertion does not depend
    on the number of points in memory.

    The array attributes except `confidence` are views of the memory, not copies: the next insertion changes them. Not
    thread-safe.

    Args:
        voxel_size: edge of a voxel, metres. Coordinates may reach a million voxels from the origin.
        max_points: maximum number of points. 20 to 40 bytes per point are allocated at once, 60 more as it fills.
        max_radius: metres; points farther than this from the last camera are removed. None = no limit.
        max_age: seconds; points last updated this long before the last view are removed. None = no limit.
        edge_tolerance: depth step between neighbouring pixels, relative to depth, that counts as a depth edge.
        max_weight: cap of the accumulated weight; a lower cap lets old points follow a changed world faster.
        carve: an observation removes imagined points in the free space in front of it.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        voxel_size: float = 0.01,
        max_points: int = 2_000_000,
        max_radius: float | None = None,
        max_age: float | None = None,
        *,
        edge_tolerance: float = 0.04,
        max_weight: float = 50.0,
        carve: bool = True,
    ) -> None:
        positive = {"voxel_size": voxel_size, "edge_tolerance": edge_tolerance, "max_weight": max_weight}
        for name, value in {**positive, "max_radius": max_radius, "max_age": max_age}.items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; a positive number was expected.")
        if not 1 <= max_points <= MAX_POINTS:
            raise InputError(f"max_points is {max_points}; between 1 and {MAX_POINTS} was expected.")
        self.voxel_size = float(voxel_size)
        self.max_points = int(max_points)
        self.max_radius = None if max_radius is None else float(max_radius)
        self.max_age = None if max_age is None else float(max_age)
        self.edge_tolerance = float(edge_tolerance)
        self.max_weight = float(max_weight)
        self.carve = bool(carve)
        self._scratch: dict[str, np.ndarray] = {}
        self._allocate()

    def _allocate(self) -> None:
        # np.empty and np.zeros only reserve address space; the system allocates a page when it is first written.
        self._arrays: dict[str, np.ndarray] = {
            name: np.empty((self.max_points, *shape), dtype) for name, (dtype, shape) in ARRAYS.items()
        }
        self._links = np.empty((2, self.max_points), np.int32)
        slots = 1 << max(6, int(np.ceil(np.log2(self.max_points * 1.6))))
        self._table_keys = np.zeros(slots, np.int64)
        self._table_points = np.zeros(slots, np.int32)
        # Entries spread over the whole table from the first frame on; touching its pages now keeps that frame fast.
        self._table_keys.fill(0)
        self._table_points.fill(0)
        self._state = np.zeros(_voxels_numba.STATE_SIZE, np.int64)
        self._state[_voxels_numba.HEAD : _voxels_numba.HEAD + 2] = -1
        self._state[_voxels_numba.TAIL : _voxels_numba.TAIL + 2] = -1
        self._camera_centre: np.ndarray | None = None
        self._last_ns = 0

    # --- content -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._state[_voxels_numba.SIZE])

    @property
    def points(self) -> np.ndarray:
        """(N, 3) float32 world coordinates, metres."""
        return self._arrays["points"][: len(self)]

    @property
    def colours(self) -> np.ndarray:
        """(N, 3) uint8 RGB."""
        return self._arrays["colours"][: len(self)]

    @property
    def observed(self) -> np.ndarray:
        """(N,) bool, True = seen by a sensor, False = imagined."""
        return self._arrays["observed"][: len(self)]

    @property
    def weight(self) -> np.ndarray:
        """(N,) float32 accumulated weight; a pixel seen head-on within one metre adds 1."""
        return self._arrays["weight"][: len(self)]

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, a copy: weighted mean of `View.confidence` over the pixels of each point.

        Observed points have confidence 1; imagined pixels without a confidence count as 0.
        """
        return self.confidence_at(slice(None))

    def confidence_at(self, index: np.ndarray | slice) -> np.ndarray:
        """(K,) float32, `confidence` of the points at `index`."""
        return self._arrays["confidence"][: len(self)][index] * np.float32(1 / CONFIDENCE_LEVELS)

    @property
    def stamp_ns(self) -> np.ndarray:
        """(N,) int64 nanoseconds, stamp of the newest view that updated the point."""
        return self._arrays["stamp_ns"][: len(self)]

    @property
    def spacing(self) -> np.ndarray:
        """(N,) float32 metres between neighbours: the voxel size or, if larger, the finest pixel on the surface."""
        return self._arrays["spacing"][: len(self)]

    @property
    def observed_count(self) -> int:
        """Number of observed points."""
        return int(self._state[_voxels_numba.LENGTH + 1])

    def clear(self) -> None:
        """Removes all points and frees their memory."""
        self._allocate()

    # --- insertion ---------------------------------------------------------------------------------------------------

    def insert(self, view: View) -> InsertReport:
        """Fuses the depth image of a view; `view.observed_mask` gives the provenance of the pixels.

        Pixels with depth 0, NaN or infinity are unknown. Flying pixels between a near and a far surface are skipped.

        Returns:
            What happened to the pixels. A view without usable depth inserts nothing and raises no error.

        Raises:
            InputError: there is no depth image, it is not floating point, a depth is negative, or points lie beyond
                the range of the voxel keys. The memory is unchanged.
        """
        depth = self._checked_depth(view)
        points, keys, weight, spacing, counts = self._lift(view, depth)
        observed = np.ascontiguousarray(view.observed_mask, dtype=np.bool_)
        colours = np.ascontiguousarray(view.image).reshape(-1, 3)
        stamps = np.array([view.stamp_ns], np.int64)
        confidence = _confidence_levels(view.confidence, observed)
        # The memory changes from here on; nothing below raises.
        self._camera_centre = view.world_from_camera[:3, 3].copy()
        self._last_ns = int(view.stamp_ns)
        swept = self._sweep(view, depth, observed, SWEEP_POINTS)
        fused = self._fuse(points, colours, observed.reshape(-1), keys, weight, spacing, stamps, confidence)
        unknown, flying, _, _, too_far = (int(number) for number in counts)
        return InsertReport(**fused, **swept, unknown=unknown, flying=flying, too_far=too_far, count=len(self))

    def insert_points(
        self,
        points: np.ndarray,
        colours: np.ndarray,
        observed: np.ndarray | bool,
        weight: np.ndarray | float = 1.0,
        stamp_ns: np.ndarray | int = 0,
        spacing: np.ndarray | float | None = None,
        confidence: np.ndarray | float | None = None,
    ) -> InsertReport:
        """Fuses points of another source: a map, a lidar, a reconstruction.

        Args:
            points: (N, 3) world coordinates, metres; points that are not finite are skipped (reported as unknown).
            colours: (N, 3) uint8 RGB.
            observed: (N,) bool, or one value for all points.
            weight: (N,) positive, or one value for all points.
            stamp_ns: (N,) nanoseconds, or one value for all points.
            spacing: (N,) metres between neighbours, or one value for all points; None = the voxel size.
            confidence: (N,) in 0..1, or one value for all points; None = 1 for observed points, 0 for others.

        Returns:
            What happened to the points.

        Raises:
            InputError: shapes or types do not fit, a weight is not positive, a confidence is not in 0..1, or points
                lie beyond the range of the voxel keys. The memory is unchanged.
        """
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != 3:
            raise InputError(f"The points have shape {points.shape}; (N, 3) was expected.")
        count = len(points)
        colours = np.asarray(colours)
        if colours.shape != (count, 3) or colours.dtype != np.uint8:
            raise InputError(f"The colours are {colours.dtype} {colours.shape}; uint8 {(count, 3)} was expected.")
        named = {
            "observed": (observed, np.bool_),
            "weight": (weight, np.float32),
            "stamp_ns": (stamp_ns, np.int64),
            "spacing": (self.voxel_size if spacing is None else spacing, np.float32),
            "confidence": (observed if confidence is None else confidence, np.float32),
        }
        columns: dict[str, np.ndarray] = {}
        for name, (value, dtype) in named.items():
            array = np.asarray(value)
            if array.shape not in ((), (count,)):
                raise InputError(f"The {name} has shape {array.shape}; ({count},) or a scalar was expected.")
            columns[name] = np.ascontiguousarray(np.broadcast_to(array, (count,)), dtype=dtype)
        for name in ("weight", "spacing"):
            if not (np.isfinite(columns[name]) & (columns[name] > 0)).all():
                raise InputError(f"The {name} has values that are not positive numbers.")
        if not ((columns["confidence"] >= 0) & (columns["confidence"] <= 1)).all():
            raise InputError("The confidence has values that are not in 0..1.")
        with np.errstate(over="ignore", invalid="ignore"):
            points = np.ascontiguousarray(points, dtype=np.float32)
        keys = np.empty(count, np.int64)
        finite = np.isfinite(points).all(axis=1)
        outside = _lift_numba.point_keys(points, 1.0 / self.voxel_size, keys) - int((~finite).sum())
        self._check_range(outside)
        fused = self._fuse(
            points, np.ascontiguousarray(colours), columns["observed"], keys, columns["weight"],
            columns["spacing"], columns["stamp_ns"], _confidence_levels(columns["confidence"], columns["observed"]),
        )  # fmt: skip
        return InsertReport(**fused, unknown=int((~finite).sum()), count=len(self))

    def prune(self) -> int:
        """Applies `max_radius` and `max_age` to all points and returns the number of removed points.

        Each insertion does this for the next `SWEEP_POINTS` points only, which bounds its cost.
        """
        no_depth = np.zeros((0, 0), np.float32)
        return self._sweep(None, no_depth, no_depth.astype(bool), len(self))["expired"]

    # --- implementation ----------------------------------------------------------------------------------------------

    def _checked_depth(self, view: View) -> np.ndarray:
        depth = view.depth
        if depth is None:
            raise InputError("The view has no depth image; estimate one first, or provide one with the colour image.")
        if not np.issubdtype(depth.dtype, np.floating):
            raise InputError(f"The depth is {depth.dtype}; float32 metres were expected (divide 16UC1 by 1000).")
        depth = np.ascontiguousarray(depth, dtype=np.float32)
        negative = int((depth < 0).sum())
        if negative and bool(np.isfinite(depth[depth < 0]).any()):
            raise InputError(
                f"The depth has {negative} negative values; metres along the optical axis were expected, 0 = unknown."
            )
        return depth

    def _lift(self, view: View, depth: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns (points, keys, weight, spacing, counts) of a view; see `_lift_numba.lift`."""
        pixels = depth.size
        if self._scratch.get("keys", np.empty(0)).size != pixels:
            self._scratch = {
                "points": np.empty((pixels, 3), np.float32),
                "keys": np.empty(pixels, np.int64),
                "weight": np.empty(pixels, np.float32),
                "spacing": np.empty(pixels, np.float32),
            }
        out = tuple(self._scratch.values())
        camera = view.camera
        bands = split_range(len(depth), torch.get_num_threads())
        counts = np.zeros((len(bands), 5), np.int64)
        reach = np.inf if self.max_radius is None else self.max_radius
        shared = (
            depth, (camera.fx, camera.fy, camera.cx, camera.cy), view.world_from_camera, np.float32(np.inf), reach,
            np.float32(self.edge_tolerance), 5, 1.0 / self.voxel_size, *out,
        )  # fmt: skip
        run_in_threads(_lift_numba.lift, [(*shared, counts[k], *band) for k, band in enumerate(bands)])
        counts = counts.sum(axis=0)
        self._check_range(int(counts[2]))
        return (*out, counts)

    def _check_range(self, outside: int) -> None:
        """Raises InputError if points lie beyond the range of the voxel keys."""
        if outside:
            limit = self.voxel_size * _lift_numba.HALF_RANGE
            raise InputError(
                f"{outside} points lie more than {limit:.6g} m from the world origin, the range of voxels of "
                f"{self.voxel_size} m. Use a local map frame or larger voxels."
            )

    def _core(self) -> tuple:
        """The leading arguments of the functions in `_voxels_numba`."""
        return ((*self._arrays.values(), *self._links), self._table_keys, self._table_points, self._state)

    def _fuse(self, points, colours, observed, keys, weight, spacing, stamps, confidence) -> dict[str, int]:
        counts = np.zeros(6, np.int64)
        _voxels_numba.fuse(
            *self._core(), points, colours, observed, keys, weight, spacing, stamps, confidence,
            np.float32(self.max_weight), np.float32(self.voxel_size), counts,
        )  # fmt: skip
        names = ("added", "merged", "promoted", "rejected", "evicted", "dropped")
        return dict(zip(names, (int(number) for number in counts), strict=True))

    def _sweep(self, view: View | None, depth: np.ndarray, observed: np.ndarray, quota: int) -> dict[str, int]:
        """Removes expired and carved points among the next `quota` points; see `_voxels_numba.sweep`."""
        counts = np.zeros(2, np.int64)
        imagined = len(self) - self.observed_count
        carving = self.carve and imagined > 0 and bool(observed.any())
        if carving or self.max_radius is not None or self.max_age is not None:
            frame = np.zeros(13)
            if carving and view is not None:
                camera = view.camera
                frame[:9] = view.world_from_camera[:3, :3].T.ravel()
                frame[9:] = camera.fx, camera.fy, camera.cx, camera.cy
                depth = np.where(observed & np.isfinite(depth), depth, np.float32(0))
            else:
                depth = np.zeros((0, 0), np.float32)
            centre = self._camera_centre
            bounded = self.max_radius is not None and centre is not None
            oldest = np.iinfo(np.int64).min
            if self.max_age is not None:
                oldest = self._last_ns - int(self.max_age * 1e9)
            _voxels_numba.sweep(
                *self._core(), quota, np.zeros(3) if centre is None else centre,
                self.max_radius if bounded else np.inf, oldest, depth, frame, 2 * self.voxel_size, counts,
            )  # fmt: skip
        return {"expired": int(counts[0]), "carved": int(counts[1])}

    # --- saving ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Returns settings and points as arrays (copies), the input of `from_state`."""
        state = {name: array[: len(self)].copy() for name, array in self._arrays.items()}
        for name in SETTINGS:
            value = getattr(self, name)
            state[name] = np.array(np.nan if value is None else value, np.float64)
        state["camera_centre"] = np.full(3, np.nan) if self._camera_centre is None else self._camera_centre.copy()
        state["last_ns"] = np.array(self._last_ns, np.int64)
        state["turn"] = self._state[_voxels_numba.TURN].copy()
        return state

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> CloudMemory:
        """Restores a memory from its `state`.

        Raises:
            InputError: an array is missing, has a wrong type or shape, or contradicts another.
        """
        state = upgrade_state(state)
        settings, count = validate_state(state)
        memory = cls(**settings)
        for name, array in memory._arrays.items():
            array[:count] = state[name]
        order = np.argsort(memory._arrays["turns"][:count], kind="stable")
        (arrays, *core) = memory._core()
        if not _voxels_numba.rebuild(*core, arrays[7], arrays[3], *arrays[-2:], order):
            raise InputError("The saved cloud has two points in one voxel (a key occurs twice).")
        memory._state[_voxels_numba.TURN] = int(np.asarray(state["turn"]).reshape(-1)[0])
        centre = np.asarray(state["camera_centre"], np.float64).reshape(-1)
        memory._camera_centre = centre.copy() if centre.shape == (3,) and np.isfinite(centre).all() else None
        memory._last_ns = int(np.asarray(state["last_ns"]).reshape(-1)[0])
        return memory


def _confidence_levels(confidence: np.ndarray | None, observed: np.ndarray) -> np.ndarray:
    """Returns (N,) or (1,) uint16 levels of a (...) confidence in 0..1; None means 1 if observed, else 0."""
    if confidence is None:
        if observed.all():
            return np.array([CONFIDENCE_LEVELS], np.uint16)
        return np.where(observed.reshape(-1), np.uint16(CONFIDENCE_LEVELS), np.uint16(0))
    # NaN counts as confidence 0.
    level = np.nan_to_num(np.asarray(confidence, np.float32).reshape(-1))
    return (np.clip(level, 0, 1) * np.float32(CONFIDENCE_LEVELS) + np.float32(0.5)).astype(np.uint16)
