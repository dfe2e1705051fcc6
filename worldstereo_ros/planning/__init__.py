"""What a planner asks of a world model: is it free, is it known, which plan is better, where to look next.

    occupancy = OccupancyMap.from_world(world)          # voxels: what sensors saw, what models estimate and imagine
    grid = occupancy.grid(RobotShape(radius=0.2))       # cells: free, occupied, unknown, and how that is known
    scores = score_paths(grid, {"left": poses, "right": others}, camera)

Cells that a sensor observed are never changed by what a model estimates or imagines.
"""

from worldstereo_ros.planning.cells import CellState, RobotShape
from worldstereo_ros.planning.next_view import RankedView, next_best_view
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.planning.occupancy_map import OccupancyMap, PointStates
from worldstereo_ros.planning.path_scores import PathScore, PathScores, ScoreWeights, score_paths
from worldstereo_ros.planning.world_occupancy import imagine_hypotheses, query_points, world_grid

__all__ = [
    "CellState", "OccupancyGrid", "OccupancyMap", "PathScore", "PathScores", "PointStates", "RankedView", "RobotShape",
    "ScoreWeights", "imagine_hypotheses", "next_best_view", "query_points", "score_paths", "world_grid",
]  # fmt: skip
