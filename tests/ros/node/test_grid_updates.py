"""Grids sent as a whole or as what has changed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs ROS 2: run `make setup`")
pytest.importorskip("map_msgs", reason="needs the messages of map_msgs: run `make setup`")
from map_msgs.msg import OccupancyGridUpdate
from nav_msgs.msg import OccupancyGrid as GridMessage
from std_msgs.msg import Header

from worldstereo_ros.ros.node.grid_updates import MARGIN_CELLS, GridChanges, all_take_updates, apply_update
from worldstereo_ros.ros.node.occupancy_publishers import OCCUPANCY_OUTPUTS, UPDATED, UPDATES

HEADER = Header(frame_id="map")


def grid_at(row: int, column: int, resolution: float = 0.1) -> SimpleNamespace:
    """What a message needs to know of a grid whose first cell is in this row and column from the world's origin."""
    return SimpleNamespace(
        origin=(column * resolution, row * resolution), resolution=resolution, grid_from_world=np.eye(3)
    )


def value_at(message: GridMessage, row: int, column: int) -> int:
    info = message.info
    i = row - round(info.origin.position.y / info.resolution)
    j = column - round(info.origin.position.x / info.resolution)
    return message.data[i * info.width + j]


def test_small_change_is_sent_alone():
    changes, cells = GridChanges(), np.full((30, 40), -1, np.int8)
    whole = changes.next(cells, grid_at(-5, 7), HEADER, partial=True)
    assert isinstance(whole, GridMessage)
    assert (whole.info.width, whole.info.height) == (40 + 2 * MARGIN_CELLS, 30 + 2 * MARGIN_CELLS)
    assert changes.next(cells, grid_at(-5, 7), HEADER, partial=True) is None
    changed = cells.copy()
    changed[3:5, 10] = 100
    update = changes.next(changed, grid_at(-5, 7), HEADER, partial=True)
    assert isinstance(update, OccupancyGridUpdate)
    assert (update.x, update.y, update.width, update.height) == (MARGIN_CELLS + 10, MARGIN_CELLS + 3, 1, 2)
    assert list(update.data) == [100, 100]
    # All of it is sent to whoever reads no updates, and after all was forgotten.
    assert isinstance(changes.next(changed, grid_at(-5, 7), HEADER, partial=False), GridMessage)
    changes.forget()
    assert isinstance(changes.next(changed, grid_at(-5, 7), HEADER, partial=True), GridMessage)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-30, 30), st.integers(-30, 30), st.integers(1, 25), st.integers(1, 25), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_receiver_has_what_was_sent_whatever_the_map_does(steps, random):
    """Maps that move, grow, shrink and change: what a subscriber keeps agrees with the newest map, cell by cell."""
    changes, kept = GridChanges(), None
    for row, column, height, width, partial in steps:
        cells = np.array([random.choice((-1, 0, 100)) for _ in range(height * width)], np.int8).reshape(height, width)
        message = changes.next(cells, grid_at(row, column), HEADER, partial=partial)
        if isinstance(message, GridMessage):
            kept = message
        elif message is not None:
            assert kept is not None
            apply_update(kept, message)
        assert kept is not None
        held = [[value_at(kept, row + i, column + j) for j in range(width)] for i in range(height)]
        np.testing.assert_array_equal(held, cells)
        # Beyond the newest map nothing old is left.
        known = sum(value != -1 for value in kept.data)
        assert known == (cells != -1).sum()


def test_other_resolution_or_frame_is_a_new_map():
    changes, cells = GridChanges(), np.zeros((30, 40), np.int8)
    changes.next(cells, grid_at(0, 0), HEADER, partial=True)
    assert isinstance(changes.next(cells, grid_at(0, 0, 0.2), HEADER, partial=True), GridMessage)
    assert isinstance(changes.next(cells, grid_at(0, 0, 0.2), Header(frame_id="odom"), partial=True), GridMessage)


def test_update_beyond_the_grid_is_an_error():
    message = GridMessage(data=[0] * 6)
    message.info.width, message.info.height = 3, 2
    with pytest.raises(ValueError, match=r"2 x 1 cells at \(2, 0\) reaches beyond the grid of 3 x 2"):
        apply_update(message, OccupancyGridUpdate(x=2, y=0, width=2, height=1, data=[1, 1]))


@pytest.mark.parametrize(
    ("whole", "parts", "expected"),
    [
        (["nav"], ["nav"], True),
        (["nav"], ["nav", "echo"], True),
        (["nav", "rviz"], ["nav"], False),  # RViz would miss what has changed
        (["nav", "nav"], ["nav"], False),  # one of two layers of a costmap
        ([], ["echo"], False),
    ],
)
def test_updates_are_sent_only_if_all_subscribers_read_them(whole, parts, expected):
    def info(topic):
        names = parts if topic.endswith(UPDATES) else whole
        return [SimpleNamespace(node_name=name, node_namespace="/") for name in names]

    node = SimpleNamespace(get_subscriptions_info_by_topic=info)
    assert all_take_updates(node, "/worldstereo/occupancy", "/worldstereo/occupancy_updates") is expected


def test_topics_of_updates_are_those_that_nav2_and_rviz_expect():
    outputs = {name: kind for name, kind, *_ in OCCUPANCY_OUTPUTS}
    for name in UPDATED:
        assert outputs[name] is GridMessage
        assert outputs[f"{name}_updates"] is OccupancyGridUpdate
