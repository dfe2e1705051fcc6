"""Global-geometric memory (GGM): a bounded point cloud that fuses views and keeps the provenance of every point."""

from __future__ import annotations

import numpy as np
import torch

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory import _cloud_state, _lift_numba, _voxels_numba
from worldstereo_ros.memory._cloud_state import ARRAYS, CONFIDENCE_LEVELS, DEFAULT_POINTS, MAX_POINTS, SETTINGS
from worldstereo_ros.memory._point_columns import checked_columns, confidence_levels
from worldstereo_ros.memory.insert_report import InsertReport
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import run_in_threads, split_range

SWEEP_POINTS = 1 << 18  # points checked per insertion for radius, age and carving; bounds the cost


class CloudMemory:
    """A voxel-hashed point cloud with colour, weight, confidence, age and provenance, bounded in size.

    A voxel holds one point: the weighted mean of the pixels in it. The weight of a pixel is the cosine of the viewing
    angle, divided by the squared distance beyond one metre. A point replaces one of a lower class (imagined, estimated,
    observed); it never changes, moves or evicts one of a higher class. When the memory is full, the least recently
    updated imagined points are evicted first, then estimated, then observed ones. The cost of an insertion does not
    depend on the number of points in memory.

    `points`, `colours`, `provenance`, `weight`, `stamp_ns` and `spacing` are views of the memory, not copies: the next
    insertion changes them. Not thread-safe.

    Args:
        voxel_size: edge of a voxel, metres. Coordinates may reach a million voxels from the origin.
        max_points: maximum number of points. 20 to 40 bytes per point are allocated at once, 60 more as it fills.
        max_radius: metres; points farther than this from the last camera are removed. None = no limit.
        max_age: seconds; points last updated this long before the last view are removed. None = no limit.
        edge_tolerance: depth step between neighbouring pixels, relative to depth, that counts as a depth edge.
        max_weight: cap of the accumulated weight; a lower cap lets old points follow a changed world faster.
        carve: measured depth removes imagined and estimated points in the free space in front of it.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        voxel_size: float = 0.01,
        max_points: int = DEFAULT_POINTS,
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
        self._state[_voxels_numba.HEAD : _voxels_numba.HEAD + 3] = -1
        self._state[_voxels_numba.TAIL : _voxels_numba.TAIL + 3] = -1
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
    def provenance(self) -> np.ndarray:
        """(N,) uint8 values of `Provenance`: imagined, estimated or observed."""
        return self._arrays["provenance"][: len(self)]

    @property
    def observed(self) -> np.ndarray:
        """(N,) bool, a copy: True = seen by a camera and measured by a depth sensor."""
        return self.provenance == Provenance.OBSERVED

    @property
    def estimated(self) -> np.ndarray:
        """(N,) bool, a copy: True = seen by a camera, at a distance that a model estimated."""
        return self.provenance == Provenance.ESTIMATED

    @property
    def weight(self) -> np.ndarray:
        """(N,) float32 accumulated weight; a pixel seen head-on within one metre adds 1."""
        return self._arrays["weight"][: len(self)]

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, a copy: weighted mean of `View.confidence` over the pixels of each point.

        It is about the colour: points that a camera saw have confidence 1; imagined pixels without a confidence count
        as 0. That of an imagined point never rises by imagining it again, that is by a later insertion.
        """
        return self.confidence_at(slice(None))

    @property
    def depth_confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, a copy: weighted mean of `View.depth_confidence` over the pixels of each point.

        Observed points have confidence 1; other pixels without a confidence count as 0. That of an imagined point never
        rises by a later insertion.
        """
        return self.depth_confidence_at(slice(None))

    def confidence_at(self, index: np.ndarray | slice) -> np.ndarray:
        """(K,) float32, `confidence` of the points at `index`."""
        return self._arrays["confidence"][: len(self)][index] * np.float32(1 / CONFIDENCE_LEVELS)

    def depth_confidence_at(self, index: np.ndarray | slice) -> np.ndarray:
        """(K,) float32, `depth_confidence` of the points at `index`."""
        return self._arrays["depth_confidence"][: len(self)][index] * np.float32(1 / CONFIDENCE_LEVELS)

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
        return int(self._state[_voxels_numba.LENGTH + Provenance.OBSERVED - 1])

    @property
    def estimated_count(self) -> int:
        """Number of estimated points."""
        return int(self._state[_voxels_numba.LENGTH + Provenance.ESTIMATED - 1])

    def clear(self) -> None:
        """Removes all points and frees their memory."""
        self._allocate()

    # --- insertion ---------------------------------------------------------------------------------------------------

    def insert(self, view: View) -> InsertReport:
        """Fuses the depth image of a view; `view.provenance` gives the classes of the pixels.

        Pixels with depth 0, NaN or infinity are unknown. Flying pixels between a near and a far surface are skipped.

        Returns:
            What happened to the pixels. A view without usable depth inserts nothing and raises no error.

        Raises:
            InputError: there is no depth image, it is not floating point, a depth is negative, or points lie beyond
                the range of the voxel keys. The memory is unchanged.
        """
        depth = self._checked_depth(view)
        points, keys, weight, spacing, counts = self._lift(view, depth)
        provenance = view.provenance
        colours = np.ascontiguousarray(view.image).reshape(-1, 3)
        stamps = np.array([view.stamp_ns], np.int64)
        levels = (
            confidence_levels(view.confidence, provenance, Provenance.ESTIMATED),
            confidence_levels(view.depth_confidence, provenance, Provenance.OBSERVED),
        )
        # The memory changes from here on; nothing below raises.
        self._camera_centre = view.world_from_camera[:3, 3].copy()
        self._last_ns = int(view.stamp_ns)
        swept = self._sweep(view, depth, view.observed_mask, SWEEP_POINTS)
        fused = self._fuse(points, colours, provenance.reshape(-1), keys, weight, spacing, stamps, *levels)
        unknown, flying, _, _, too_far = (int(number) for number in counts)
        return InsertReport(**fused, **swept, unknown=unknown, flying=flying, too_far=too_far, count=len(self))

    def insert_points(
        self,
        points: np.ndarray,
        colours: np.ndarray,
        provenance: np.ndarray | int,
        weight: np.ndarray | float = 1.0,
        stamp_ns: np.ndarray | int = 0,
        spacing: np.ndarray | float | None = None,
        confidence: np.ndarray | float | None = None,
        depth_confidence: np.ndarray | float | None = None,
    ) -> InsertReport:
        """Fuses points of another source: a map, a lidar, a reconstruction.

        Args:
            points: (N, 3) world coordinates, metres; points that are not finite are skipped (reported as unknown).
            colours: (N, 3) uint8 RGB.
            provenance: (N,) uint8 `Provenance`, or bool with True = observed and False = imagined; or one value.
            weight: (N,) positive, or one value for all points.
            stamp_ns: (N,) nanoseconds, or one value for all points.
            spacing: (N,) metres between neighbours, or one value for all points; None = the voxel size.
            confidence: (N,) in 0..1, or one value for all points; None = 0 for imagined points, 1 for others.
            depth_confidence: (N,) in 0..1, or one value for all points; None = 1 for observed points, 0 for others.

        Returns:
            What happened to the points.

        Raises:
            InputError: shapes or types do not fit, a weight is not positive, a confidence is not in 0..1, or points
                lie beyond the range of the voxel keys. The memory is unchanged.
        """
        points = np.asarray(points)
        positive = {"weight": weight, "spacing": self.voxel_size if spacing is None else spacing}
        confidences = {"confidence": confidence, "depth_confidence": depth_confidence}
        columns = checked_columns(points, colours, provenance, positive, confidences, stamp_ns)
        count, kinds = len(points), columns["provenance"]
        with np.errstate(over="ignore", invalid="ignore"):
            points = np.ascontiguousarray(points, dtype=np.float32)
        keys = np.empty(count, np.int64)
        finite = np.isfinite(points).all(axis=1)
        outside = _lift_numba.point_keys(points, 1.0 / self.voxel_size, keys) - int((~finite).sum())
        self._check_range(outside)
        fused = self._fuse(
            points, columns["colours"], kinds, keys, columns["weight"], columns["spacing"], columns["stamp_ns"],
            confidence_levels(columns.get("confidence"), kinds, Provenance.ESTIMATED),
            confidence_levels(columns.get("depth_confidence"), kinds, Provenance.OBSERVED),
        )  # fmt: skip
        return InsertReport(**fused, unknown=int((~finite).sum()), count=len(self))

    def remove_estimated(self, view: View) -> int:
        """Removes the estimated points that `insert(view)` added or updated; returns their number.

        For a view whose estimated depth is superseded. Points of higher classes are unchanged.

        Raises:
            InputError: see `insert`. The memory is unchanged.
        """
        _, keys, *_ = self._lift(view, self._checked_depth(view))
        return int(_voxels_numba.remove_at(*self._core(), keys, Provenance.ESTIMATED.value))

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
            raise InputError(
                f"{outside} points lie more than {self.voxel_size * _lift_numba.HALF_RANGE:.6g} m from the world "
                f"origin, the range of voxels of {self.voxel_size} m. Use a local map frame or larger voxels."
            )

    def _core(self) -> tuple:
        """The leading arguments of the functions in `_voxels_numba`."""
        return ((*self._arrays.values(), *self._links), self._table_keys, self._table_points, self._state)

    def _fuse(
        self, points, colours, provenance, keys, weight, spacing, stamps, confidence, depth_confidence
    ) -> dict[str, int]:
        counts = np.zeros(6, np.int64)
        _voxels_numba.fuse(
            *self._core(), points, colours, provenance, keys, weight, spacing, stamps, confidence, depth_confidence,
            np.float32(self.max_weight), np.float32(self.voxel_size), np.zeros(self.max_points, bool), counts,
        )  # fmt: skip
        names = ("added", "merged", "promoted", "rejected", "evicted", "dropped")
        return dict(zip(names, (int(number) for number in counts), strict=True))

    def _sweep(self, view: View | None, depth: np.ndarray, observed: np.ndarray, quota: int) -> dict[str, int]:
        """Removes expired and carved points among the next `quota` points; see `_voxels_numba.sweep`."""
        counts = np.zeros(2, np.int64)
        carving = self.carve and len(self) > self.observed_count and bool(observed.any())
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
    def from_state(cls, state: dict[str, np.ndarray], like: CloudMemory | None = None) -> CloudMemory:
        """Restores a memory from its `state`.

        Args:
            state: arrays of a saved memory.
            like: a memory whose settings apply instead of the saved ones; what does not fit is left out.

        Raises:
            InputError: an array is missing, has a wrong type or shape, or contradicts another.
        """
        state = _cloud_state.upgrade_state(state)
        saved, count = _cloud_state.validate_state(state)
        settings, fits = _cloud_state.choose_settings(saved, count, like)
        memory = cls(**settings)
        memory._camera_centre, memory._last_ns = _cloud_state.last_camera(state)
        if not fits:
            memory.insert_points(**_cloud_state.points_that_fit(state, memory.max_points, memory.voxel_size))
            return memory
        for name, array in memory._arrays.items():
            array[:count] = state[name]
        order = np.argsort(memory._arrays["turns"][:count], kind="stable")
        (arrays, *core) = memory._core()
        if not _voxels_numba.rebuild(*core, arrays[7], arrays[3], *arrays[-2:], order):
            raise InputError("The saved cloud has two points in one voxel (a key occurs twice).")
        memory._state[_voxels_numba.TURN] = int(np.asarray(state["turn"]).reshape(-1)[0])
        return memory
