"""Speed of the rasteriser of Gaussians beside a dense one in plain torch, forward and backward, in one run.

    python benchmarks/bench_gaussian_splats.py [--splats N] [--rounds N] [--threads N] [--peer-splats N]

Two scenes: `surface` has flat discs on the walls of a room, as splats of a reconstruction; `volume` has round splats of
any opacity all over the view. The peer (`dense_gaussians.py`) computes every splat at every pixel, so that it gets
fewer splats; both are compared at that number.

The floor counts what any rasteriser has to do: an exponential, five multiply-adds and a product for every pixel in a
splat's ellipse that light still reaches, as fast as this machine does so in one long loop over numbers in the cache.
Projection, sorting and the pixels of a row of 16 outside of the ellipse come on top. Derivatives of the peer need
memory for every pair of splat and pixel: about 1.5 GB for 400 splats. gsplat is timed as well where it and a GPU are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from dense_gaussians import project_gaussians, render_dense

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.rendering._gaussian_blending_numba import _exp
from worldstereo_ros.rendering.gaussians import GaussianBackendError, render_gaussians
from worldstereo_ros.utils.jit import compiled, run_in_threads

CAMERA = Camera(384, 224, 300.0, 300.0, 191.5, 111.5)
MAX_FORWARD_MS = 150.0  # target, for 100 k splats on two idle cores
POSE = np.eye(4)


def surface_scene(count: int) -> list[torch.Tensor]:
    """Discs on the walls of a 6 x 2.7 x 6 m room, as large as their distance from each other asks for."""
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-1, 1, (2, count))
    wall = rng.integers(0, 5, count)
    flat = np.ones(count)
    x = np.choose(wall, [3 * u, 3 * u, -3 * flat, 3 * flat, 3 * u])
    y = np.choose(wall, [1.2 * flat, -1.5 * flat, 1.35 * v - 0.15, 1.35 * v - 0.15, 1.35 * v - 0.15])
    z = np.choose(wall, [3 * v + 3, 3 * v + 3, 3 * u + 3, 3 * u + 3, 6 * flat])
    quaternions = np.zeros((count, 4))
    half = np.sqrt(0.5)
    quaternions[:, 0] = np.choose(wall, [half, half, half, half, 1])
    quaternions[:, 1] = np.choose(wall, [half, half, 0, 0, 0])
    quaternions[:, 2] = np.choose(wall, [0, 0, half, half, 0])
    sigma = 0.6 * np.sqrt(120 / count)
    scales = np.tile([sigma, sigma, 0.15 * sigma], (count, 1))
    parts = (np.stack([x, y, z], 1), quaternions, scales, np.full(count, 0.7), rng.uniform(0, 1, (count, 3)))
    return [torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in parts]


def volume_scene(count: int) -> list[torch.Tensor]:
    """Round splats of any opacity, a few pixels large, all over the view."""
    rng = np.random.default_rng(0)
    z = rng.uniform(1.5, 4.5, count)
    x, y = rng.uniform(-0.66, 0.66, count) * z, rng.uniform(-0.4, 0.4, count) * z
    scales = rng.uniform(0.3, 1.3, (count, 3)) * 0.02
    parts = (np.stack([x, y, z], 1), rng.normal(size=(count, 4)), scales, rng.uniform(0, 0.5, count),
             rng.uniform(0, 1, (count, 3)))  # fmt: skip
    return [torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in parts]


def measure(forward: Callable[[], torch.Tensor], rounds: int, leaves: list[torch.Tensor]) -> tuple[float, float]:
    """Median milliseconds of (forward, backward)."""
    times = []
    for _ in range(rounds + 1):
        for leaf in leaves:
            leaf.grad = None
        start = time.perf_counter()
        image = forward()
        middle = time.perf_counter()
        loss = image.square().sum()
        before = time.perf_counter()
        loss.backward()
        times.append((1e3 * (middle - start), 1e3 * (time.perf_counter() - before)))
    first, second = np.median(times[1:], axis=0)
    return float(first), float(second)


def pixels_to_blend(parts: list[torch.Tensor]) -> float:
    """Pixels inside the splats' ellipses (to an alpha of 1/255), summed, until a pixel is opaque; from a sample."""
    with torch.no_grad():
        centres, covariances, depth = project_gaussians(*parts[:3], CAMERA, POSE)
        order = torch.argsort(depth)
        order = order[depth[order] > 0.01]
        inverse, opacity = torch.linalg.inv(covariances[order]), parts[3][order]
        total, samples = 0.0, 256
        rng = torch.Generator().manual_seed(0)
        for _ in range(samples):
            at = torch.rand(2, generator=rng) * torch.tensor([CAMERA.width - 1.0, CAMERA.height - 1.0])
            offset = at.round() - centres[order]
            power = -0.5 * torch.einsum("ni,nij,nj->n", offset, inverse, offset)
            alpha = opacity * power.exp()
            alpha = alpha[alpha >= 1 / 255].clamp(max=0.999)
            through = torch.cumprod(1 - alpha, 0)
            total += float((through > 1e-4).sum())
    return total / samples * CAMERA.width * CAMERA.height


@compiled
def blend_numbers(state, rounds):
    """Blends one number after the other into 256 pixels: the arithmetic of the rasteriser without splats to look up."""
    one = np.float32(1.0)
    for k in range(rounds):
        opacity = np.float32(1e-3) + np.float32(k & 7) * np.float32(1e-4)
        for j in range(256):
            alpha = opacity * _exp(np.float32(-0.01) * np.float32(j))
            through = state[j]
            weight = alpha * through
            state[j] = through - weight + np.float32(1e-3) * (one - through)
            state[256 + j] += weight
            state[512 + j] += weight
            state[768 + j] += weight
            state[1024 + j] += weight


def blends_per_second(threads: int) -> float:
    """Blended pixels a second of all threads together."""
    rounds, states = 40_000, [np.ones(1280, np.float32) for _ in range(threads)]
    blend_numbers(states[0], 10)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        run_in_threads(blend_numbers, [(state, rounds) for state in states])
        best = min(best, time.perf_counter() - start)
    return threads * rounds * 256 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splats", type=int, default=100_000)
    parser.add_argument("--peer-splats", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    threads = arguments.threads
    torch.set_num_threads(threads)
    speed = blends_per_second(threads)
    print(f"{CAMERA.width}x{CAMERA.height}, {threads} threads that blend at most {speed / 1e9:.2f} G pixels a second")
    for name, scene in (("surface", surface_scene), ("volume", volume_scene)):
        parts = scene(arguments.splats)

        def ours(parts: list[torch.Tensor] = parts) -> torch.Tensor:
            return render_gaussians(*parts, CAMERA, POSE, threads=threads).colour

        forward, backward = measure(ours, arguments.rounds, parts)
        work = pixels_to_blend(parts)
        floor = 1e3 * work / speed
        verdict = ""
        if arguments.splats == 100_000:
            verdict = f" (target {MAX_FORWARD_MS:.0f}, {'met' if forward <= MAX_FORWARD_MS else 'MISSED'})"
        print(f"{name}, {arguments.splats:,} splats: forward {forward:.1f} ms{verdict}, backward {backward:.1f} ms")
        print(f"  floor {floor:.1f} ms for {work / 1e6:.1f} M pixels; forward: {forward / floor:.1f} times that")
        few = scene(arguments.peer_splats)
        mine = measure(lambda few=few: ours(few), arguments.rounds, few)
        peer = measure(lambda few=few: render_dense(*few, CAMERA, POSE)[0], 2, few)
        print(
            f"  {arguments.peer_splats:,} splats, forward + backward: dense {peer[0]:.0f} + {peer[1]:.0f} ms, ours "
            f"{mine[0]:.1f} + {mine[1]:.1f} ms; ratios {peer[0] / mine[0]:.0f} and {peer[1] / mine[1]:.0f}"
        )
        if torch.cuda.is_available():
            on_gpu = [part.detach().cuda().requires_grad_() for part in parts]
            try:
                times = measure(lambda gpu=on_gpu: render_gaussians(*gpu, CAMERA, POSE).colour.cpu(), 9, on_gpu)
                print(f"  gsplat, {torch.cuda.get_device_name()}: {times[0]:.1f} ms, backward {times[1]:.1f} ms")
            except GaussianBackendError as error:
                print(f"  {error}")


if __name__ == "__main__":
    main()
