#!/usr/bin/env python3
"""Trains the parts of the stereo refiner one after the other on one set of clips, and prints what each gains.

    python scripts/stereo_ablation.py --data crops --render-minutes 25
    python scripts/stereo_ablation.py --data crops --out runs/stereo_ablation --steps 250

The first command renders clips of validation worlds, then of as many training worlds as the time allows; the second
trains each variant for the same number of steps, in bfloat16 on one thread, and writes weights and results.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.stereo_refiner import StereoRefiner, load_stereo_refiner
from worldstereo_ros.training.data.stereo_crops import load_crops, render_crops, views_of, with_painted
from worldstereo_ros.training.stereo_ablation import (
    LEARNING_RATE,
    VARIANTS,
    WorldScore,
    measure,
    new_model,
    of_background,
    of_fill,
    of_network,
    train_variant,
)
from worldstereo_ros.training.stereo_training import STEREO_FOLDER

VALIDATION_WORLDS, CLIPS = 48, 3
ANYWHERE = "anywhere"  # in the names of files of clips that are not cut around holes
VIEWS = ("as they are", "cut at the side", "without memory", "cut, without memory")  # of `views_of`
SHARES = (1.0, 0.6)  # of a network's colours, mixed into the fill


def render(folder: Path, minutes: float) -> None:
    """Renders validation worlds, then training worlds until the time is over; files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    for index in range(10**6):
        split = "validation" if index < VALIDATION_WORLDS else "training"
        number = index if split == "validation" else index - VALIDATION_WORLDS
        if split == "training" and time.monotonic() > end:
            return
        for anywhere, name in ((False, split), (True, f"{split}_{ANYWHERE}")):
            file = folder / f"{name}_{number:05d}.npz"
            if not file.is_file():
                crops = render_crops(split, number, clips=CLIPS, clean=split == "validation", anywhere=anywhere)
                if crops is not None:
                    crops.save(file)


def save(model: StereoRefiner, folder: Path) -> None:
    """Writes weights and configuration as a run of `worldstereo train stereo` does."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    save_weights(folder, BASE_STEM, model.state_dict())
    write_json(folder / "config.json", {"_class_name": "StereoRefiner", **config})


def row(name: str, score: WorldScore, fill: WorldScore) -> dict:
    """Figures of a line of the table."""
    gain, error = score.gain(fill)
    better = float((score.psnr > fill.psnr).mean())
    return {
        "name": name, "psnr": float(score.psnr.mean()), "pooled": score.pooled(), "gain": gain, "error": error,
        "better": better, "flicker": score.flicker,
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """The lines as Markdown."""
    head = "| painted pixels | mean of worlds, dB | over the fill, dB | worlds better | all pixels, dB | flicker |"
    lines = [head, "| --- " * 6 + "|"]
    for r in rows:
        gain = "" if "fill" in r["name"] else f"{r['gain']:+.2f} ± {r['error']:.2f}"
        lines.append(
            f"| {r['name']} | {r['psnr']:.2f} | {gain} | {100 * r['better']:.0f} % | {r['pooled']:.2f} | "
            f"{r['flicker']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Renders, or trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--render-minutes", type=float, default=0.0, help="render for so long, and stop")
    parser.add_argument("--out", type=Path, help="folder of the weights and of results.json")
    parser.add_argument("--steps", type=int, default=250, help="of each variant")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--resume", action="store_true", help="train further from the weights in --out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.render_minutes:
        render(options.data, options.render_minutes)
        return
    if options.out is None:
        parser.error("--out is missing")
    views = dict(zip(VIEWS, views_of(load_crops(sorted(options.data.glob("validation_[0-9]*.npz")))), strict=True))
    validation = views[VIEWS[0]]
    if found := sorted(options.data.glob(f"validation_{ANYWHERE}_*.npz")):  # the sides of images are not all like holes
        at_sides = dict(zip(VIEWS, views_of(load_crops(found)), strict=True))
        views |= {key: with_painted(view) for key, view in at_sides.items() if "cut" in key}
    clips = load_crops(sorted(options.data.glob("training_*.npz")))
    fill = measure(validation, of_fill)
    rows = [
        row("background alone", measure(validation, of_background), fill),
        row("memory and background (fill)", fill, fill),
    ]
    counts = [len(np.unique(each.world.numpy())) for each in (clips, validation)]
    print(f"{len(clips)} clips of {counts[0]} worlds, {len(validation)} of {counts[1]} unseen worlds", flush=True)
    print(table(rows), flush=True)
    fills = {key: measure(view, of_fill) for key, view in views.items()}
    by_view = [row(f"fill, {key}", each, each) for key, each in fills.items()]
    for key in options.variants:
        variant, folder = VARIANTS[key], options.out / key / STEREO_FOLDER
        model = load_stereo_refiner(folder) if options.resume else None
        if model is None:
            model = new_model(variant, seed=options.seed)
        model.requires_grad_(True)
        print(key, flush=True)
        trained = train_variant(
            variant, model, clips, options.steps, seed=options.seed, learning_rate=options.learning_rate,
            progress=lambda text: print(text, flush=True),
        )  # fmt: skip
        save(trained, folder)
        rows.append(row(variant.name, measure(validation, of_network(trained)), fill))
        if variant.sides:
            by_view += [
                row(f"{share:.0%} of the network, {key}", measure(view, of_network(trained, share)), fills[key])
                for key, view in views.items()
                for share in SHARES
            ]
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        write_json(
            options.out / "results.json",
            {"steps": options.steps, "clips": len(clips), "rows": rows, "by_view": by_view},
        )
    print(json.dumps({"training_worlds": counts[0], "validation_worlds": counts[1]}))
    print(table(rows))
    print("The last network by what is known of the clips:")
    print(table(by_view))


if __name__ == "__main__":
    main()
