#!/usr/bin/env python3
"""Compares errors of the point-map autoencoder (huber, l1, l2) in short equal runs: the same clips in the same order.

Each starts from the autoencoder of images. Printed is how far decoded points of validation worlds are from the truth,
over their distance from the first camera. Takes some minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import math

import numpy as np
import torch

from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder
from worldstereo_ros.training.data.moving_walks import WalkPool, render_walks
from worldstereo_ros.training.data.pointmap_batches import true_points
from worldstereo_ros.training.pointmap_losses import CODE_ERRORS, autoencoder_loss
from worldstereo_ros.training.stages.pointmaps import load_image_autoencoder

SIZE, VIEWS, FRAMES = (96, 128), 13, 5
WORLDS = {"training": 12, "validation": 4}
RATE, WARM_UP, CONSTANT = 8e-4, 20, 0.3  # highest learning rate; steps; share of the run before it falls
VALIDATION_STRIDE = 3
MIN_DISTANCE = 0.05  # of points, in mean distances


def main() -> None:
    """Trains the three side by side and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of each run, one clip of five frames each")
    steps = parser.parse_args().steps
    pools = {split: walks_of(split, count) for split, count in WORLDS.items()}
    first = PointmapAutoencoder.from_image_autoencoder(load_image_autoencoder(torch.device("cpu")))
    print(f"{len(pools['training'])} walks, {len(pools['validation'])} of validation worlds, {steps} steps")
    print("| error | mean | median | below .25 |\n| --- | --- | --- | --- |")
    for error in CODE_ERRORS:
        network = copy.deepcopy(first).requires_grad_(True).train()
        train(network, error, pools["training"], steps)
        mean, median, share = score(network.eval(), pools["validation"])
        print(f"| {error} | {mean:.4f} | {median:.4f} | {share:.3f} |", flush=True)


def walks_of(split: str, count: int) -> WalkPool:
    """Walks of the first worlds of a split."""
    walks = [
        walk
        for index in range(count)
        for walk in render_walks(split, index, (SIZE,), views=VIEWS, supersample=1, movers=3)
    ]
    pool = WalkPool(SIZE, len(walks), "cpu", VIEWS)
    for walk in walks:
        pool.add(walk)
    return pool


def train(network: PointmapAutoencoder, error: str, pool: WalkPool, steps: int) -> None:
    """Trains with one error."""
    random = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.99))
    for step in range(steps):
        fall = max(0.0, step / steps - CONSTANT) / (1 - CONSTANT)
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * fall)))
        points, hit = true_points(pool.draw(1, FRAMES, random))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = autoencoder_loss(network, points, hit, error=error)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()


@torch.no_grad()
def score(network: PointmapAutoencoder, pool: WalkPool) -> tuple[float, float, float]:
    """Means over clips: mean and median of the relative error of points, and the share below .25."""
    rows = []
    for index in range(len(pool)):
        points, hit = true_points(pool.take(np.array([index]), np.arange(0, VIEWS, VALIDATION_STRIDE)[None]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = network.decode_pointmaps(network.encode_pointmaps(points, hit))[0].float()
        error = ((decoded - points).norm(dim=2) / points.norm(dim=2).clamp_min(MIN_DISTANCE))[hit]
        rows.append((float(error.mean()), float(error.median()), float((error < 0.25).float().mean())))
    mean, median, share = np.mean(rows, axis=0)
    return float(mean), float(median), float(share)


if __name__ == "__main__":
    main()
