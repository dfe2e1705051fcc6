"""Precision and recall of provenance as a client of the node receives it, against ground truth.

    python benchmarks/bench_node_truth.py [--data worlds:test:1] [--protocol single] [--pipeline small] [--every 8]

The node runs in its own process, over DDS on this machine. For each scenario the client resets it, adds the
observations, requests the held-out views, and compares the received provenance, depth and confidence with ground truth,
as `worldstereo evaluate --truth` does for the library. Prints the table; --json FILE writes the rows.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from node_process import running_node

DOMAIN = 102  # outside the range that the tests use
PROTOCOLS = ("single", "sparse", "mono")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", help="as of worldstereo evaluate; default worlds:test:1")
    parser.add_argument("--protocol", action="append", help=f"default {', '.join(PROTOCOLS)}")
    parser.add_argument("--pipeline", action="append", help="default geometric")
    parser.add_argument("--every", type=int, default=8, help="request every n-th held-out view")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    os.environ.update(ROS_DOMAIN_ID=str(DOMAIN), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    from rich.console import Console

    from worldstereo_ros.evaluation.protocols import make_scenario
    from worldstereo_ros.evaluation.truth import TruthRow, TruthScorer, find_seen, truth_line, truth_table, write_truth
    from worldstereo_ros.evaluation.world_sequences import open_data
    from worldstereo_ros.ros.client.client import WorldStereoClient

    sequences = [sequence for data in options.data or ["worlds:test:1"] for sequence in open_data(data)]
    protocols = options.protocol or list(PROTOCOLS)
    rows: list[TruthRow] = []
    lost = 0
    for pipeline in options.pipeline or ["geometric"]:
        for protocol in protocols:
            # A node that may estimate depth would do so for an image whose depth is late.
            depth_model = "small" if protocol == "mono" else "none"
            with running_node(model=pipeline, depth_model=depth_model), WorldStereoClient(publish_tf=True) as client:
                client.wait_until_ready(120)
                for sequence in sequences:
                    scenario = make_scenario(sequence, protocol, options.every)
                    scorer = TruthScorer(sequence.path.name, protocol, pipeline)
                    done, message = client.reset()
                    if not done:  # the observations of another sequence would stay in memory
                        print(f"The node could not be reset: {message}", file=sys.stderr)
                        return 1
                    for view in scenario.observed_views:
                        client.add_observation(view)
                    start = 0
                    for leg, poses in enumerate(scenario.legs):
                        result = client.imagine(poses, seed=leg, remember=scenario.remember)
                        if result.error_code:
                            print(f"A goal failed with error {result.error_code}: {result.error_msg}", file=sys.stderr)
                            return 1
                        views = {view.index: view for view in result.views}
                        lost += len(poses) - len(views)
                        for offset, received in views.items():
                            index = start + offset
                            if index in scenario.evaluated:
                                truth = scenario.target_views[scenario.evaluated.index(index)]
                                seen = find_seen(truth, scenario.observed_views, scenario.views_with_depth)
                                scorer.add(received, truth, seen)
                        start += len(poses)
                    for row in scorer.rows():
                        print(truth_line(row), flush=True)
                        rows.append(row)
                    if options.json is not None:
                        write_truth(rows, options.json)
    Console(width=240).print(truth_table(rows))
    if lost:
        print(f"{lost} views were lost on the way and are missing in the table.", file=sys.stderr)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
