"""Validation of the point-map network on worlds that it was not trained on, beside its prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import torch

from worldstereo_ros.depth.familiarity import laplace_confidence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models.pointmaps.geometry import world_points
from worldstereo_ros.models.pointmaps.model import PointmapModel
from worldstereo_ros.models.pointmaps.types import PointmapPrediction
from worldstereo_ros.pipelines.pointmaps.refinement import poses_of
from worldstereo_ros.training.data.moving_walks import MovingClips
from worldstereo_ros.training.data.pointmap_batches import ValidationClips
from worldstereo_ros.training.pointmap_losses import clip_medians
from worldstereo_ros.utils.atomic_files import atomic_path

DELTA = 1.25
EVALUATION_BATCH = 8  # clips
PICTURE_FRAME = 6


def depth_scores(log_depth: torch.Tensor, clips: MovingClips) -> dict[str, list[float]]:
    """Scores of each clip, after one scale: `abs_rel`, `delta`, `abs_rel_median` (over pixels), `moving_abs_rel`."""
    hit = clips.depth > 0
    error = log_depth - clips.depth.clamp_min(1e-2).log()
    error = error - clip_medians(error, hit, 1).view(-1, 1, 1, 1)
    relative = (error.clamp(max=5).exp() - 1).abs()
    scores: dict[str, list[float]] = {"abs_rel": [], "delta": [], "abs_rel_median": [], "moving_abs_rel": []}
    for index, mask in enumerate(hit):
        values = relative[index][mask]
        scores["abs_rel"].append(float(values.mean()))
        scores["delta"].append(float((error[index][mask].abs() < np.log(DELTA)).float().mean()))
        scores["abs_rel_median"].append(float(values.median()))
        moving = mask & clips.moving[index]
        scores["moving_abs_rel"].append(float(relative[index][moving].mean()) if bool(moving.any()) else np.nan)
    return scores


def point_scores(points: torch.Tensor, clips: MovingClips) -> dict[str, list[float]]:
    """Scores of point maps (b, F, 3, H, W), after one scale: mean error over distance, share of errors below .25."""
    truth = world_points(clips.depth, clips.poses, clips.intrinsics)
    hit = clips.depth > 0
    length = truth.norm(dim=2).clamp_min(1e-3)
    ratio = length.log() - points.norm(dim=2).clamp_min(1e-4).log()
    scaled = points * clip_medians(ratio, hit, 1).exp().view(-1, 1, 1, 1, 1)
    relative = (scaled - truth).norm(dim=2) / length
    each = [relative[i][mask] for i, mask in enumerate(hit)]
    return {
        "rel_p": [float(values.mean()) for values in each],
        "delta_p": [float((values < 0.25).float().mean()) for values in each],
    }


@torch.no_grad()
def validate(
    model: PointmapModel, validation: ValidationClips, sampler_steps: Sequence[int] = (1,), passes: int = 2
) -> tuple[dict[str, float], PointmapPrediction]:
    """Scores the depth network, the prior, the model after one and more passes, and the form without a prior.

    Returns:
        Means over clips by name (and medians over clips of `abs_rel`), and the last predictions.
    """
    clips, prior = validation.clips, validation.prior.prior
    rows: dict[str, dict[str, list[float]]] = {}

    def add(method: str, scores: dict[str, list[float]]) -> None:
        for name, values in scores.items():
            rows.setdefault(method, {}).setdefault(name, []).extend(values)

    predictions = []
    for start in range(0, len(clips.depth), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        some = MovingClips(*(getattr(clips, n)[part] for n in ("images", "depth", "moving", "poses", "intrinsics")))
        images, first = validation.images[part], prior.select(part)
        add("network", depth_scores(validation.prior.depth_log[part], some))
        add("prior", depth_scores(first.log_depth, some))
        for count in sorted({1, passes}):
            prediction = model.refine(images, some.intrinsics, first, passes=count)
            add(f"pass{count}", depth_scores(prediction.log_depth, some))
        predictions.append(prediction)
        add("no_prior", depth_scores(model.refine(images, some.intrinsics, None).log_depth, some))
        add("prior", point_scores(world_points(first.log_depth.exp(), first.poses, some.intrinsics), some))
        add(f"pass{passes}", point_scores(prediction.points(first.poses, some.intrinsics), some))
        for steps in sampler_steps:
            generator = torch.Generator(images.device).manual_seed(steps)
            for name, given in (("no_prior", None), ("latents", first)):
                sampled = model.sample(images, some.intrinsics, given, steps=steps, generator=generator)
                add(f"{name}_{steps}", point_scores(sampled.points, some))
    metrics = {}
    for method, scores in rows.items():
        for name, values in scores.items():
            known = [v for v in values if np.isfinite(v)]
            metrics[f"{method}_{name}"] = float(np.mean(known)) if known else float("nan")
        if "abs_rel" in scores:
            metrics[f"{method}_clip_median_abs_rel"] = float(np.median(scores["abs_rel"]))
    prediction = PointmapPrediction(
        torch.cat([p.log_depth for p in predictions]),
        torch.cat([p.log_scale for p in predictions]),
        torch.cat([p.dynamic for p in predictions]),
        torch.cat([p.valid for p in predictions]),
    )
    return {**metrics, **_calibration(prediction, clips)}, prediction


@torch.no_grad()
def sample_scores(model: PointmapModel, validation: Sequence[MovingClips], steps: Sequence[int]) -> dict[str, float]:
    """Scores point maps that are sampled without a prior, and the poses that they imply.

    Returns:
        For each number of steps N, means over clips: `N_rel_p`, `N_delta_p`; `N_found`, the share of frames with a
        pose; `N_ate`, its error over the length of the path, after one similarity, as of a path that stands still
        (`still_ate`); `depth_abs_rel`, `depth_delta` of the maps at the resolution of pixels.
    """
    rows: dict[str, list[float]] = {}
    for all_clips in validation:
        for index in range(len(all_clips.depth)):
            part = slice(index, index + 1)
            clips = MovingClips(*(getattr(all_clips, field.name)[part] for field in fields(MovingClips)))
            images = clips.images * 2 - 1
            truth = clips.poses[0].double().cpu().numpy()
            length = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()) + 1e-3
            still = np.sqrt(np.square(truth[:, :3, 3] - truth[:, :3, 3].mean(0)).sum(1).mean())
            rows.setdefault("still_ate", []).append(float(still) / length)
            scores = depth_scores(model.refine(images, clips.intrinsics, None, passes=1).log_depth, clips)
            rows.setdefault("depth_abs_rel", []).extend(scores["abs_rel"])
            rows.setdefault("depth_delta", []).extend(scores["delta"])
            for count in steps:
                generator = torch.Generator(images.device).manual_seed(0)
                sampled = model.sample(images, clips.intrinsics, steps=count, generator=generator)
                for name, values in point_scores(sampled.points, clips).items():
                    rows.setdefault(f"{count}_{name}", []).extend(values)
                camera = Camera(images.shape[4], images.shape[3], *(float(v) for v in clips.intrinsics[0]))
                confidence = laplace_confidence(sampled.log_scale[0].float().exp().cpu().numpy())
                confidence = confidence * (sampled.valid[0] > 0).cpu().numpy()
                points = sampled.points[0].float().permute(0, 2, 3, 1).cpu().numpy()
                poses, found = poses_of(points, confidence, camera)
                rows.setdefault(f"{count}_found", []).append(float(found.mean()))
                rows.setdefault(f"{count}_ate", []).append(_path_error(poses[:, :3, 3], truth[:, :3, 3]) / length)
    return {name: float(np.mean(values)) for name, values in rows.items()}


def _path_error(path: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared distance of two paths (F, 3) after the best similarity (Umeyama 1991)."""
    a, b = path - path.mean(0), truth - truth.mean(0)
    u, singular, vt = np.linalg.svd(a.T @ b)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    scale = float((singular * sign).sum()) / max(float(np.square(a).sum()), 1e-12)
    return float(np.sqrt(np.square(scale * a @ (u * sign) @ vt - b).sum(1).mean()))


def _calibration(prediction: PointmapPrediction, clips: MovingClips) -> dict[str, float]:
    """How well the scale of errors and what moves are known."""
    hit = clips.depth > 0
    error = prediction.log_depth - clips.depth.clamp_min(1e-2).log()
    error = (error - clip_medians(error, hit, 1).view(-1, 1, 1, 1)).abs()[hit]
    sigma = prediction.log_scale.exp()[hit]
    order = sigma.argsort()
    half = len(order) // 2
    found = prediction.dynamic > 0
    both, either = (found & clips.moving).sum(), (found | clips.moving).sum()
    return {
        "error_over_sigma": float(error.mean() / sigma.mean()),
        "within_sigma": float((error < sigma).float().mean()),  # 0.632 for a Laplace distribution
        "sure_half_error": float(error[order[:half]].mean()),
        "unsure_half_error": float(error[order[half:]].mean()),
        "dynamic_iou": float(both / either.clamp_min(1)),
        "dynamic_precision": float(both / found.sum().clamp_min(1)),
        "dynamic_recall": float(both / clips.moving.sum().clamp_min(1)),
    }


def summary(metrics: dict[str, float], passes: int = 2) -> str:
    """The measures that matter, beside their baselines."""
    parts = [
        f"{name}: AbsRel {metrics[f'{key}_abs_rel']:.3f} (median clip {metrics[f'{key}_clip_median_abs_rel']:.3f}) "
        f"d1.25 {metrics[f'{key}_delta']:.3f}"
        for name, key in (
            ("depth net", "network"), ("prior", "prior"), ("1 pass", "pass1"), (f"{passes} passes", f"pass{passes}"),
            ("no prior", "no_prior"),
        )
    ]  # fmt: skip
    parts.append(
        f"error/sigma {metrics['error_over_sigma']:.2f}, dynamic IoU {metrics['dynamic_iou']:.2f}, no-prior points "
        f"d.25 {metrics['no_prior_1_delta_p']:.3f}"
    )
    return " | ".join(parts)


def write_picture(
    file: Path, validation: ValidationClips, prediction: PointmapPrediction, indices: Sequence[int]
) -> None:
    """Writes a PNG of clips: image, true depth, prior, prediction, its sigma, and what moves, one row each."""
    rows = []
    for index in indices:
        clips, f = validation.clips, min(PICTURE_FRAME, validation.images.shape[1] - 1)
        image = ((validation.images[index, f] + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        hit = clips.depth[index, f] > 0
        truth = clips.depth[index, f].clamp_min(1e-2).log()
        low, high = (
            (float(v) for v in torch.quantile(truth[hit].float(), truth.new_tensor([0.02, 0.98])))
            if bool(hit.any())
            else (0.0, 1.0)
        )
        maps = [truth]
        for other in (validation.prior.prior.log_depth, prediction.log_depth):
            shift = clip_medians(
                (other[index] - clips.depth[index].clamp_min(1e-2).log())[None], (clips.depth[index] > 0)[None], 1
            )
            maps.append(other[index, f] - shift)
        cells = [image[..., ::-1]]
        for each in maps:
            level = ((each - low) / max(high - low, 1e-3) * 255).clamp(0, 255).byte().cpu().numpy()
            cells.append(cv2.applyColorMap(255 - level, cv2.COLORMAP_TURBO))
        sigma = (prediction.log_scale[index, f].exp() * 400).clamp(0, 255).byte().cpu().numpy()
        cells.append(cv2.applyColorMap(sigma, cv2.COLORMAP_INFERNO))
        moves = (torch.sigmoid(prediction.dynamic[index, f]) * 255).byte().cpu().numpy()
        cells.append(np.stack([(clips.moving[index, f].cpu().numpy() * 120).astype(np.uint8), moves, moves], axis=-1))
        rows.append(np.concatenate(cells, axis=1))
    encoded = cv2.imencode(".png", np.concatenate(rows, axis=0))[1]
    with atomic_path(file) as partial:
        partial.write_bytes(encoded.tobytes())
