"""When grids, their updates and the meaning of the speed mask are sent; the middleware is stood in for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.floor_plans import around, boxes, look, mapped

pytest.importorskip("rclpy", reason="needs ROS 2: run `make setup`")
pytest.importorskip("map_msgs", reason="needs the messages of map_msgs: run `make setup`")
from builtin_interfaces.msg import Time
from map_msgs.msg import OccupancyGridUpdate
from nav_msgs.msg import OccupancyGrid as GridMessage

from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.ros.node import occupancy_publishers
from worldstereo_ros.ros.node.occupancy_publishers import OBSERVED, SPEED_MASK, SPEED_MASK_INFO, UPDATES
from worldstereo_ros.ros.node.parameters import NodeParameters

SCENE = boxes(((1.5, 0.0, 0.5), (0.4, 1.0, 1.0)))
FIRST = around(SCENE, -0.5, 0.0, views=6)


class Bench:
    """The publishers, a node without middleware, and whoever subscribes: topic -> (node, number of its endpoint)."""

    def __init__(self) -> None:
        self.sent, self.log, self.readers = defaultdict(list), [], defaultdict(list)
        self.views, self.revision = list(FIRST), 0
        clock = SimpleNamespace(now=lambda: SimpleNamespace(to_msg=Time))
        self.node = SimpleNamespace(
            create_lifecycle_publisher=self._publisher,
            get_subscriptions_info_by_topic=lambda topic: [
                SimpleNamespace(node_name=name, node_namespace="/", endpoint_gid=[number])
                for name, number in self.readers[topic]
            ],
            resolve_topic_name=lambda name: name.replace("~", "/worldstereo"),
            get_clock=lambda: clock,
            get_logger=lambda: SimpleNamespace(info=self.log.append),
        )
        defaults = NodeParameters()
        parameters = replace(defaults, planning=replace(defaults.planning, period=0.0))
        planner = SimpleNamespace(
            submit=lambda question: question.answer(question.work(question)),
            grid=lambda question: make_grid(mapped(SCENE, *self.views)),
        )
        diagnostics = SimpleNamespace(warn=lambda text, key: self.log.append(text))
        self.publishers = occupancy_publishers.OccupancyPublishers(
            self.node, parameters, diagnostics, planner, lambda: self.revision
        )

    def _publisher(self, kind, name, profile, **options):
        topic = name.replace("~", "/worldstereo")
        return SimpleNamespace(
            is_activated=True,
            publish=self.sent[name].append,
            get_subscription_count=lambda: len(self.readers[topic]),
        )

    def observe(self, view) -> None:
        self.views.append(view)
        self.revision += 1

    def tick(self) -> dict[str, list[type]]:
        """Types of the messages that are sent now, by topic."""
        before = {name: len(messages) for name, messages in self.sent.items()}
        self.publishers.tick()
        new = {name: [type(m) for m in messages[before.get(name, 0) :]] for name, messages in self.sent.items()}
        return {name: kinds for name, kinds in new.items() if kinds}


WHOLE, PARTS = "/worldstereo/occupancy/observed", "/worldstereo/occupancy/observed_updates"


def test_grid_then_what_has_changed_then_the_whole_for_a_new_reader():
    bench = Bench()
    bench.readers[WHOLE], bench.readers[PARTS] = [("nav", 1)], [("nav", 2)]
    assert bench.tick()[OBSERVED] == [GridMessage]
    assert bench.tick() == {}
    bench.revision += 1  # an image that shows nothing new
    assert bench.tick() == {}
    bench.observe(look(SCENE, 0.3, -1.2, 0.0))
    assert bench.tick() == {OBSERVED + UPDATES: [OccupancyGridUpdate]}
    bench.readers[WHOLE] = [("nav", 3)]  # it was restarted between two looks
    assert bench.tick() == {OBSERVED: [GridMessage]}
    bench.readers[WHOLE].append(("rviz", 4))  # it reads no updates
    assert bench.tick() == {OBSERVED: [GridMessage]}
    bench.observe(look(SCENE, 0.3, 1.2, 0.0))
    assert bench.tick() == {OBSERVED: [GridMessage]}


def test_mask_is_sent_whole_and_its_meaning_once():
    bench = Bench()
    bench.readers["/worldstereo/speed_mask"] = [("nav", 1)]
    sent = bench.tick()
    assert sent[SPEED_MASK] == [GridMessage]
    assert len(sent[SPEED_MASK_INFO]) == 1
    bench.observe(look(SCENE, 0.3, -1.2, 0.0))
    assert bench.tick() == {SPEED_MASK: [GridMessage]}
    assert set(np.unique(bench.sent[SPEED_MASK][-1].data)) == {0, 50}
    info = bench.sent[SPEED_MASK_INFO][0]
    assert (info.type, info.filter_mask_topic, info.multiplier) == (1, "/worldstereo/speed_mask", 1.0)


def test_missing_message_packages_are_told_of(monkeypatch):
    outputs = tuple(
        row for row in occupancy_publishers.OCCUPANCY_OUTPUTS if row[1] is GridMessage
    )  # as without map_msgs and nav2_msgs
    for name, value in {"OCCUPANCY_OUTPUTS": outputs, "UpdateMessage": None, "FilterInfo": None}.items():
        monkeypatch.setattr(occupancy_publishers, name, value)
    bench = Bench()
    assert "map_msgs is not installed: grids are sent as a whole" in bench.log[0]
    assert "nav2_msgs is not installed" in bench.log[1]
    assert "costmap_filter_info_server" in bench.log[1]
    bench.readers[WHOLE], bench.readers[PARTS] = [("nav", 1)], [("nav", 2)]
    assert bench.tick() == {OBSERVED: [GridMessage]}
    bench.observe(look(SCENE, 0.3, -1.2, 0.0))
    assert bench.tick() == {OBSERVED: [GridMessage]}
