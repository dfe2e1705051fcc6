"""The demo as `make demo` runs it, smaller: the node in its own process, everything over the middleware."""

import json

import numpy as np
import pytest
from helpers.checkpoints import DMD_VARIANT, write_small_checkpoint

import worldstereo_ros
from worldstereo_ros.cli import demo
from worldstereo_ros.evaluation.demo_scenarios import scene_scenario
from worldstereo_ros.io.bags.files import Bag
from worldstereo_ros.io.bags.views import read_views
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.memory.archive import load_archive

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    def small(kind, seed, views):
        return scene_scenario(kind, seed, views, given=4, width=160, height=120)

    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", "91")
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        patch.setattr(demo, "scene_scenario", small)
        # A toy model in the place of the one that ships, for this process: the node's own is geometric.
        package = tmp_path_factory.mktemp("package")
        write_small_checkpoint(package / "weights" / "small", (DMD_VARIANT,))
        patch.setattr(worldstereo_ros, "__path__", [str(package), *worldstereo_ros.__path__])
        figures = demo.run_demo(out, views=5, model="geometric")
    return out, figures


def test_everything_promised_is_there(outcome):
    out, figures = outcome
    for name in (
        "imagined.mp4",
        "contact_sheet.png",
        "cloud.ply",
        "cloud.png",
        "world.wsmap",
        "figures.json",
        "node.log",
    ):
        assert (out / name).stat().st_size > 0, name
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["views"] == 5
    assert figures["psnr_observed"] > figures["psnr_imagined"]
    assert 0 < figures["observed_fraction"] < 1


def test_the_other_pipelines_imagine_the_same_path(outcome):
    out, figures = outcome
    assert figures["model"] == "geometric"
    (small,) = figures["beside"].values()
    assert figures["beside"].keys() == {"small"}
    # The same memory and the same rules: the same pixels are observed, and an untrained model paints the others worse.
    assert small["psnr_observed"] == pytest.approx(figures["psnr_observed"], abs=1.0)
    assert small["psnr_imagined"] < figures["psnr_imagined"]
    assert not (out / demo.SEEN_FILE).exists()


def test_a_node_that_cannot_be_configured_ends_the_demo_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "92")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setattr(demo, "scene_scenario", lambda *_: scene_scenario("room", 0, 2, given=2, width=64, height=48))
    with pytest.raises(demo.DemoError, match=r"could not be configured\. The model 'crystal-ball' is not known"):
        demo.run_demo(tmp_path, model="crystal-ball")


def test_the_views_are_a_sequence_with_what_was_observed(outcome):
    out, _ = outcome
    sequence = open_sequence(out / "imagined")
    assert len(sequence) == 5
    assert sequence[0].depth is not None
    assert len(list((out / "imagined" / "observed").iterdir())) == 5
    assert len(open_sequence(out / "given")) == 4


def test_the_map_holds_what_was_seen_and_what_was_imagined(outcome):
    archive = load_archive(outcome[0] / "world.wsmap")
    assert archive.cloud.observed.any()
    assert (~archive.cloud.observed).any()
    assert sum(view.observed is None for view in archive.bank.views) == 4


def test_the_bag_holds_what_was_published_and_can_be_played_to_us(outcome):
    out, _ = outcome
    with Bag(out / "bag") as bag:
        counts = {topic: sum(1 for _ in bag.messages([topic])) for topic in bag.topics}
    assert counts["/image"] == 4
    assert counts["/worldstereo/view"] == counts["/worldstereo/image"] == counts["/worldstereo/conditioning"] == 5
    assert counts["/worldstereo/map"] >= 1
    assert "/tf_static" in counts
    views = list(read_views(out / "bag", "/image", depth_topic="/depth"))
    assert len(views) == 4
    given = open_sequence(out / "given")
    np.testing.assert_allclose(views[2].world_from_camera, given[2].world_from_camera, atol=1e-5)
    np.testing.assert_array_equal(views[2].image, given[2].image)


def test_the_node_ended_and_complained_of_nothing(outcome):
    log = (outcome[0] / "node.log").read_text()
    assert "Imagined 5 views" in log
    assert "Traceback" not in log
    assert "[ERROR]" not in log
