"""A node under load for minutes: 30 Hz RGB-D, goals of 500 poses one after the other, and memory that stays flat.

    make soak                                       # ten minutes
    WORLDSTEREO_SOAK_SECONDS=300 pytest -s tests/soak

Without `WORLDSTEREO_SOAK_SECONDS` only the measuring itself is tested.
"""

import os
import threading
import time

import numpy as np
import pytest
from soak.memory_curve import MAX_SLOPE_MB_PER_MIN, WARM_UP_S, MemoryCurve, resident_megabytes

SECONDS = float(os.environ.get("WORLDSTEREO_SOAK_SECONDS", 0))
RATE_HZ = 30.0
POSES = 500
PLACES = (0.0, 0.25, 0.5, 0.75)  # x of the robot; in between, it would see points that are new, for minutes
FRAMES_PER_PLACE = 60


def curve_of(megabytes, period=1.0):
    curve = MemoryCurve(pid=0)
    curve.megabytes = [float(value) for value in megabytes]
    curve.seconds = [period * (index + 1) for index in range(len(curve.megabytes))]
    return curve


def test_slope_of_known_curves():
    noise = np.random.default_rng(0).normal(0, 10, 600)
    spikes = np.where(np.arange(600) % 50 == 0, 200, 0)
    filling = 300 * (1 - np.exp(-np.arange(600) / 20))
    minutes = np.arange(600) / 60
    flat = curve_of(500 + filling + noise + spikes)
    assert abs(flat.slope()) < MAX_SLOPE_MB_PER_MIN
    leaking = curve_of(500 + filling + noise + spikes + 2 * MAX_SLOPE_MB_PER_MIN * minutes)
    assert leaking.slope() > MAX_SLOPE_MB_PER_MIN
    assert curve_of(7 * minutes).slope() == pytest.approx(7)
    with pytest.raises(ValueError, match="too few"):
        curve_of(noise[:125]).slope()
    assert len(flat.table(12).splitlines()) == 12


def test_curve_of_this_process_sees_what_it_holds():
    held = []
    with MemoryCurve(os.getpid(), period=0.05) as curve:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(curve.megabytes) < 3:
            time.sleep(0.01)
        before = resident_megabytes(os.getpid())
        held.append(np.ones(200 * 2**20, np.uint8))
        count = len(curve.megabytes)
        while time.monotonic() < deadline and len(curve.megabytes) < count + 3:
            time.sleep(0.01)
    assert max(curve.megabytes) > before + 150
    assert held[0].all()


def test_curve_ends_with_the_process():
    def gone(pid):
        raise FileNotFoundError(pid)

    with MemoryCurve(os.getpid(), period=0.01, sample=gone) as curve:
        curve._thread.join(5)
        assert not curve._thread.is_alive()
    assert curve.megabytes == []


@pytest.mark.ros
@pytest.mark.soak
@pytest.mark.skipif(SECONDS <= 0, reason="set WORLDSTEREO_SOAK_SECONDS, or run `make soak`")
@pytest.mark.timeout(2 * SECONDS + 400)
def test_memory_of_a_busy_node_is_flat():
    from action_msgs.msg import GoalStatus
    from helpers import node_harness as harness
    from std_msgs.msg import Header

    from worldstereo_ros.ros.conversions import messages

    colour, depth = harness.scene()
    stop = threading.Event()
    counts = {"images": 0, "goals": 0}

    def drive(robot):
        """Publishes the camera and its pose at 30 Hz; the robot goes from one of a few places to the next."""
        next_frame = time.monotonic()
        while not stop.is_set():
            stamp = robot.now()
            robot.send_tf(PLACES[counts["images"] // FRAMES_PER_PLACE % len(PLACES)], stamp)
            header = Header(stamp=stamp, frame_id=harness.CAMERA_FRAME)
            robot.info.publish(messages.info_message(harness.CAMERA, header))
            robot.depth.publish(messages.depth_message(depth, header))
            robot.image.publish(messages.colour_message(colour, header))
            counts["images"] += 1
            next_frame = max(next_frame + 1 / RATE_HZ, time.monotonic() - 1)
            stop.wait(max(0.0, next_frame - time.monotonic()))

    with harness.running({"diagnostics_period": 1.0, "map_period": 1.0}) as (node, robot):
        thread = threading.Thread(target=drive, args=(robot,), daemon=True)
        thread.start()
        try:
            # The cloud is complete after one round: what it still grows by is no leak.
            assert harness.wait_for(lambda: counts["images"] > 2 * FRAMES_PER_PLACE * len(PLACES), 120)
            assert harness.wait_for(robot.observations_taken, 60)
            end = time.monotonic() + SECONDS
            with MemoryCurve(node.process.pid) as curve:
                while time.monotonic() < end:
                    status, result = robot.imagine(robot.goal(length=1.0, poses=POSES), SECONDS + 240)
                    assert status == GoalStatus.STATUS_SUCCEEDED, result.error_msg
                    counts["goals"] += 1
        finally:
            stop.set()
            thread.join(5)
        assert node.alive
        slope = curve.slope(min(WARM_UP_S, SECONDS / 2))
        print(
            f"\n{SECONDS:.0f} s, {counts['images'] / SECONDS:.1f} images/s, {counts['goals']} goals of {POSES} poses; "
            f"{slope:+.2f} MB/min after {min(WARM_UP_S, SECONDS / 2):.0f} s (at most {MAX_SLOPE_MB_PER_MIN:g})\n"
            f"  until  least  median largest\n{curve.table()}"
        )
        assert slope <= MAX_SLOPE_MB_PER_MIN, curve.table()
