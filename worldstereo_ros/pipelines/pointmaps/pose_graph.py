"""Pose graph over similarities: nodes that odometry chains together, and loops that close the chain.

Monocular odometry drifts in scale as well as in pose, so that a node is a similarity (Strasdat et al., RSS 2010).
Errors of an edge are those of rotation, translation and logarithmic scale, each over its own standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.utils.errors import InputError

ITERATIONS = 30
STEP = 1e-6  # of numeric derivatives
DAMPING = 1e-9
TOLERANCE = 1e-8  # relative decrease of the cost at which iterations end
ROUGH_TOLERANCE = 1e-4  # where a decision, or a start near the solution, needs no more


@dataclass(frozen=True)
class Similarities:
    """N similarities: world = scale * rotation @ local + translation.

    Attributes:
        log_scale: (N,).
        rotation: (N, 3, 3).
        translation: (N, 3), in the unit of the world.
    """

    log_scale: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    def __len__(self) -> int:
        return len(self.log_scale)

    @classmethod
    def of_poses(cls, world_from_camera: np.ndarray) -> Similarities:
        """Those of cameras (N, 4, 4) in the unit of the world."""
        poses = np.asarray(world_from_camera, np.float64)
        return cls(np.zeros(len(poses)), poses[:, :3, :3].copy(), poses[:, :3, 3].copy())

    @classmethod
    def of(cls, similarities: Sequence[Similarity]) -> Similarities:
        """From N single ones."""
        return cls(
            np.log([each.scale for each in similarities]),
            np.stack([each.rotation for each in similarities]),
            np.stack([each.translation for each in similarities]),
        )

    def __getitem__(self, rows: np.ndarray) -> Similarities:
        return Similarities(self.log_scale[rows], self.rotation[rows], self.translation[rows])

    def relative(self, other: Similarities) -> Similarities:
        """Those from the locals of `other` to the locals of these, in the unit of the latter."""
        back = np.swapaxes(self.rotation, 1, 2)
        shift = np.einsum("nij,nj->ni", back, other.translation - self.translation)
        return Similarities(
            other.log_scale - self.log_scale, back @ other.rotation, shift * np.exp(-self.log_scale)[:, None]
        )


@dataclass(frozen=True)
class Edges:
    """E measured relative similarities.

    Attributes:
        first, second: (E,) nodes.
        relative: similarities from the local axes of `second` to those of `first`.
        sigma: (E, 3) standard deviations of rotation (radians), translation (unit of `first`) and logarithmic scale.
    """

    first: np.ndarray
    second: np.ndarray
    relative: Similarities
    sigma: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: np.ndarray) -> Edges:
        return Edges(self.first[rows], self.second[rows], self.relative[rows], self.sigma[rows])

    def joined(self, other: Edges) -> Edges:
        """These edges and others."""
        both = np.concatenate
        relative = Similarities(
            *(
                both([getattr(self.relative, name), getattr(other.relative, name)])
                for name in ("log_scale", "rotation", "translation")
            )
        )
        return Edges(
            both([self.first, other.first]), both([self.second, other.second]), relative,
            both([self.sigma, other.sigma]),
        )  # fmt: skip


def edge_errors(nodes: Similarities, edges: Edges) -> np.ndarray:
    """(E, 7) errors of edges in standard deviations: rotation, translation, logarithmic scale."""
    return _errors(nodes[edges.first], nodes[edges.second], edges)


def _errors(one: Similarities, two: Similarities, edges: Edges) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    now, wanted = one.relative(two), edges.relative
    turn = Rotation.from_matrix(np.swapaxes(wanted.rotation, 1, 2) @ now.rotation).as_rotvec()
    return np.concatenate(
        [
            turn / edges.sigma[:, :1],
            (now.translation - wanted.translation) / edges.sigma[:, 1:2],
            (now.log_scale - wanted.log_scale)[:, None] / edges.sigma[:, 2:],
        ],
        axis=1,
    )


def _moved(nodes: Similarities, change: np.ndarray) -> Similarities:
    """Nodes after changes (N, 7) of rotation (about their own axes), translation and logarithmic scale."""
    from scipy.spatial.transform import Rotation

    return Similarities(
        nodes.log_scale + change[:, 6],
        nodes.rotation @ Rotation.from_rotvec(change[:, :3]).as_matrix(),
        nodes.translation + change[:, 3:6],
    )


def optimise(
    nodes: Similarities, edges: Edges, *, tolerance: float = TOLERANCE, enough: float = 0.0
) -> tuple[Similarities, float]:
    """Least squares of all edges by Levenberg-Marquardt; the first node stays where it is.

    Args:
        nodes: N start values.
        edges: that connect all nodes with the first one.
        tolerance: relative decrease of the cost at which iterations end.
        enough: cost at which they end.

    Returns:
        The nodes, and half the sum of squared errors, which is that of a chi-square distribution.

    Raises:
        InputError: an edge is of a node that is not there.
    """
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    if len(edges) and max(edges.first.max(), edges.second.max()) >= len(nodes):
        raise InputError(f"An edge is of node {max(edges.first.max(), edges.second.max())}; there are {len(nodes)}.")
    error = edge_errors(nodes, edges)
    cost, damping = 0.5 * float((error**2).sum()), 1e-6
    count = len(edges)
    for _ in range(ITERATIONS):
        blocks = np.stack([_derivatives(nodes, edges, error, side) for side in (0, 1)], axis=1)  # (E, 2, 7, 7)
        ends = np.stack([edges.first, edges.second], axis=1)
        column = (7 * ends[:, :, None] + np.arange(7)).reshape(count, 2, 1, 7)
        row = (7 * np.arange(count)[:, None] + np.arange(7)).reshape(count, 1, 7, 1)
        shape = blocks.shape
        jacobian = sparse.csr_matrix(
            (blocks.ravel(), (np.broadcast_to(row, shape).ravel(), np.broadcast_to(column, shape).ravel())),
            shape=(7 * count, 7 * len(nodes)),
        )[:, 7:]
        normal, slope = (jacobian.T @ jacobian).tocsc(), jacobian.T @ error.ravel()
        better = False
        for _ in range(8):
            diagonal = sparse.diags(damping * normal.diagonal() + DAMPING)
            change = np.concatenate([np.zeros(7), spsolve((normal + diagonal).tocsc(), -slope)]).reshape(-1, 7)
            tried = _moved(nodes, change)
            new_error = edge_errors(tried, edges)
            new_cost = 0.5 * float((new_error**2).sum())
            if np.isfinite(new_cost) and new_cost <= cost:
                better = True
                break
            damping *= 10
        if not better:
            break
        gained = cost - new_cost
        nodes, error, cost, damping = tried, new_error, new_cost, max(damping / 10, 1e-12)
        if gained <= tolerance * max(cost, 1e-12) or cost <= enough:
            break
    return nodes, cost


def _derivatives(nodes: Similarities, edges: Edges, error: np.ndarray, side: int) -> np.ndarray:
    """(E, 7, 7) derivatives of the errors by the change of the first (0) or second node of each edge."""
    ends = [nodes[edges.first], nodes[edges.second]]
    out = np.empty((len(edges), 7, 7))
    for axis in range(7):
        change = np.zeros((len(edges), 7))
        change[:, axis] = STEP
        moved = list(ends)
        moved[side] = _moved(ends[side], change)
        out[:, :, axis] = (_errors(moved[0], moved[1], edges) - error) / STEP
    return out


def _chi_square(probability: float, freedom: int) -> float:
    """Quantile of the chi-square distribution; `scipy.stats` would take a second to import."""
    from scipy.special import gammaincinv

    return 2 * float(gammaincinv(freedom / 2, probability))


def explains(nodes: Similarities, chain: Edges, loop: Edges, probability: float) -> bool:
    """Whether the drift of a chain alone explains one loop; arguments as `close_loops`."""
    enough = 0.5 * _chi_square(probability, 7)
    _, cost = optimise(nodes, chain.joined(loop), tolerance=ROUGH_TOLERANCE, enough=enough)
    return bool(cost <= enough)


def close_explained(
    nodes: Similarities, chain: Edges, loops: Edges, probability: float
) -> tuple[Similarities, np.ndarray]:
    """`close_loops` of loops that the chain `explains` one by one, with less work.

    Of loops that contradict each other the one that fits worst goes first.

    Args:
        nodes: start values, near the solution; the first one stays where it is.
        chain, loops, probability: see `close_loops`.

    Returns:
        See `close_loops`; the start values where no loop is left.
    """
    used = np.ones(len(loops), bool)
    while used.any():
        chosen = loops[np.flatnonzero(used)]
        best, cost = optimise(nodes, chain.joined(chosen), tolerance=ROUGH_TOLERANCE)
        if 2 * cost <= _chi_square(probability, 7 * len(chosen)):
            return best, used
        worst = int(np.argmax((edge_errors(best, chosen) ** 2).sum(axis=1)))
        used[np.flatnonzero(used)[worst]] = False
    return nodes, used


def close_loops(nodes: Similarities, chain: Edges, loops: Edges, probability: float) -> tuple[Similarities, np.ndarray]:
    """Optimises a chain with the loops that its drift can explain.

    The chain alone has no error. What loops add is the Mahalanobis distance of their discrepancy under the covariance
    of the chain, of 7 degrees of freedom each, so that a loop beyond its quantile is a wrong one: the place only looks
    the same.

    Args:
        nodes: N start values, which the chain fits.
        chain: edges between successive nodes.
        loops: candidates.
        probability: quantile of the chi-square distribution.

    Returns:
        The nodes, and (L,) bool: the loop was used.
    """
    # Each of them alone first: a single wrong one must not bend what the others are measured by.
    used = np.array([explains(nodes, chain, loops[np.array([k])], probability) for k in range(len(loops))], bool)
    best = nodes
    while used.any():
        chosen = loops[np.flatnonzero(used)]
        best, cost = optimise(nodes, chain.joined(chosen))
        if 2 * cost <= _chi_square(probability, 7 * len(chosen)):
            return best, used
        # Loops that contradict each other: without the one whose removal helps most.
        candidates = np.flatnonzero(used)
        costs = []
        for candidate in candidates:
            rest = loops[candidates[candidates != candidate]]
            costs.append(optimise(nodes, chain.joined(rest))[1])
        used[candidates[int(np.argmin(costs))]] = False
    return nodes if not used.any() else best, used


def interpolate(
    nodes: Similarities, start: Similarities, at: np.ndarray, poses: np.ndarray, frames: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves frames between nodes with these.

    Each frame keeps its place relative to the nodes before and after it; the two answers are blended by time.

    Args:
        nodes, start: K nodes after and before optimisation.
        at: (K,) ascending numbers of the frames that are nodes.
        poses: (F, 4, 4) world_from_camera before.
        frames: (F,) numbers of these.

    Returns:
        (F, 4, 4) poses after, and (F,) factors of the unit of length of each frame.
    """
    from scipy.spatial.transform import Rotation

    low = np.clip(np.searchsorted(at, frames, side="right") - 1, 0, len(at) - 1)
    high = np.minimum(low + 1, len(at) - 1)
    gap = np.maximum(at[high] - at[low], 1)
    share = np.clip((frames - at[low]) / gap, 0, 1)
    local = Similarities.of_poses(poses)
    ends = []
    for index in (low, high):
        inner = start[index].relative(local)
        node = nodes[index]
        turn = node.rotation @ inner.rotation
        shift = np.einsum("nij,nj->ni", node.rotation, inner.translation) * np.exp(node.log_scale)[:, None]
        ends.append((node.log_scale + inner.log_scale, turn, shift + node.translation))
    (scale_a, turn_a, shift_a), (scale_b, turn_b, shift_b) = ends
    step = Rotation.from_matrix(np.swapaxes(turn_a, 1, 2) @ turn_b).as_rotvec() * share[:, None]
    out = np.tile(np.eye(4), (len(frames), 1, 1))
    out[:, :3, :3] = turn_a @ Rotation.from_rotvec(step).as_matrix()
    out[:, :3, 3] = shift_a + share[:, None] * (shift_b - shift_a)
    return out, np.exp(scale_a + share * (scale_b - scale_a))


def chain_edges(nodes: Similarities, sigma: np.ndarray) -> Edges:
    """The edges between successive nodes as they are, with standard deviations (N - 1, 3)."""
    count = len(nodes)
    first, second = np.arange(count - 1), np.arange(1, count)
    return Edges(first, second, nodes[first].relative(nodes[second]), sigma)
