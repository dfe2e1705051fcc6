"""`worldstereo evaluate`: image, cloud and depth quality on recorded or rendered sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldstereo_ros.cli.options import INPUT, MODEL, OUTPUT, DepthModel, Device
from worldstereo_ros.utils.errors import InputError


def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="DATA",
            help="Posed sequence, folder of sequences, or worlds:SPLIT:COUNT such as worlds:test:8. Interpolation, "
            "extrapolation and every-fifth take sequences without depth, too. Repeatable.",
            rich_help_panel=INPUT,
        ),
    ],
    every: Annotated[
        int, typer.Option(metavar="N", help="Evaluate every n-th held-out frame.", min=1, rich_help_panel=INPUT)
    ] = 1,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROTOCOL",
            help="Protocol: single, sparse, mono, revisit, loop, panorama, cloud; of photographs in any order: "
            "interpolation, extrapolation or every-fifth. Repeatable.",
            show_default="single and sparse",
            rich_help_panel="Protocol",
        ),
    ] = None,
    poses: Annotated[
        str,
        typer.Option(
            metavar="POSES",
            help="Poses of the photographs that interpolation, extrapolation and every-fifth give: given, estimated or "
            "both.",
            rich_help_panel="Protocol",
        ),
    ] = "both",
    depth_source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Their depth: sweep (from the photographs alone) or sensor.",
            rich_help_panel="Protocol",
        ),
    ] = "sweep",
    depth: Annotated[
        bool,
        typer.Option(
            "--depth",
            help="Evaluate depth instead: of single images, or of the views that each --pipeline imagines.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    truth: Annotated[
        bool,
        typer.Option(
            "--truth",
            help="Evaluate provenance instead: precision, recall and calibration of observed, estimated and imagined "
            "pixels. Protocols by default: single, sparse, mono and revisit.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    exploration: Annotated[
        bool,
        typer.Option(
            "--exploration",
            help="Evaluate exploration instead: a simulated robot sees worlds:SPLIT:COUNT or worlds:SPLIT:FIRST:END by "
            "the rules frontier, mapex and ours.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    point_goals: Annotated[
        bool,
        typer.Option(
            "--point-goals",
            help="Evaluate navigation instead: a simulated robot drives to an unseen point of floors with the seeds of "
            "worlds:SPLIT:COUNT or worlds:SPLIT:FIRST:END, without imagination and with 1, 3 and 11 hypotheses.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    stereo: Annotated[
        bool,
        typer.Option(
            "--stereo",
            help="Evaluate made eyes instead, of stereo pairs (left.png, right.png, calib.json), posed sequences with "
            "depth and worlds. --pipeline is unchanged, background, telea, geometric, small (the bundled network), "
            "or the folder of a training run; all of the former by default.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    pointmaps: Annotated[
        bool,
        typer.Option(
            "--pointmaps",
            help="Evaluate point maps instead, in clips of 17 frames of posed sequences, with or without depth, and of "
            "worlds:SPLIT:COUNT with moving things; movers:PATH draws moving things into posed sequences with depth. "
            "--pipeline is vo, map, small or small-no-prior, by default all whose weights are there; as in "
            "small-no-prior?steps=4&weights=RUN.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    remember: Annotated[
        bool,
        typer.Option(
            "--remember",
            help="With --truth: request the views three times, add them to memory each time, and evaluate the last.",
            rich_help_panel="Protocol",
        ),
    ] = False,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Pipeline: geometric, small, a checkpoint (folder or hub id), anyrecon:PATH, or open3d+telea. Options "
            "follow a question mark, as in small?compose=false; those of the loop in interpolation, extrapolation "
            "and every-fifth, too, as in geometric?update=false&revisit=true. Repeatable.",
            show_default="geometric",
            rich_help_panel=MODEL,
        ),
    ] = None,
    stages: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Training run folder: evaluate all pipelines of the ablation table in docs/benchmarks/small_model.md.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    features: Annotated[
        bool,
        typer.Option(
            help="Compare features of holes too: patch KID and ST-LPIPS, half a second for each of eight views a row.",
            rich_help_panel="Protocol",
        ),
    ] = True,
    depth_model: DepthModel = "",
    device: Device = "cpu",
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the rows to this JSON file, each when it is ready.", rich_help_panel=OUTPUT
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a contact sheet to this .png or .jpg file.", rich_help_panel=OUTPUT),
    ] = None,
    reliability: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw predicted against actual error to this .png file, or write the values to this .json file.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Evaluate pipelines on sequences with ground truth, beside a baseline."""
    kinds = {"stereo": stereo, "pointmaps": pointmaps, "point-goals": point_goals, "exploration": exploration}
    if len(given := [f"--{name}" for name, chosen in kinds.items() if chosen]) > 1:
        raise InputError(f"{' and '.join(given)} are different evaluations; give one of them.")
    if stereo:
        if truth or depth or remember or protocol or stages or sheet or reliability:
            raise InputError(
                "--stereo takes --data, --pipeline, --depth-model, --device and --json; remove the other options."
            )
        from worldstereo_ros.evaluation.stereo import run_stereo

        run_stereo(
            data,
            pipelines=pipeline or (),
            depth_model=depth_model,
            json_file=json,
            with_features=features,
            device=device,
        )
        return
    if pointmaps:
        if truth or depth or remember or protocol or stages or sheet or reliability:
            raise InputError(
                "--pointmaps takes --data, --pipeline, --depth-model, --device and --json; remove the other options."
            )
        from worldstereo_ros.evaluation.pointmaps import run_pointmaps

        run_pointmaps(data, methods=pipeline or (), depth_model=depth_model, json_file=json, device=device)
        return
    if point_goals:
        if truth or depth or remember or exploration or protocol or pipeline or stages or sheet or reliability:
            raise InputError("--point-goals takes --data, --json and nothing else; remove the other options.")
        _drive_to_points(data, json)
        return
    if exploration:
        if truth or depth or remember or protocol or pipeline or stages or sheet or reliability or depth_model:
            raise InputError("--exploration takes --data, --json and nothing else; remove the other options.")
        _explore(data, json)
        return
    from worldstereo_ros.evaluation.given_photographs import DEPTH_SOURCES, POSES
    from worldstereo_ros.evaluation.reconstruction_protocols import RECONSTRUCTION_PROTOCOLS

    if poses not in (*POSES, "both") or depth_source not in DEPTH_SOURCES:
        expected = f"one of {', '.join((*POSES, 'both'))} and one of {', '.join(DEPTH_SOURCES)}"
        raise InputError(f"--poses is '{poses}' and --depth-source is '{depth_source}'; {expected} were expected.")
    if (poses != "both" or depth_source != "sweep") and not set(RECONSTRUCTION_PROTOCOLS) & set(protocol or ()):
        raise InputError(f"--poses and --depth-source need --protocol {', '.join(RECONSTRUCTION_PROTOCOLS)}.")
    if remember and not truth:
        raise InputError("--remember needs --truth.")
    if truth:
        if depth or stages or sheet or reliability:
            raise InputError("--truth evaluates provenance only; remove --depth, --stages, --sheet and --reliability.")
        from worldstereo_ros.evaluation.truth_runner import TRUTH_PROTOCOLS, run_truth

        run_truth(
            data,
            protocol or TRUTH_PROTOCOLS,
            pipeline or ["geometric"],
            json_file=json,
            remember=remember,
            every=every,
            depth_model=depth_model,
            device=device,
        )
        return
    if depth:
        if protocol or stages:
            raise InputError("--depth evaluates depth only; remove --protocol and --stages.")
        from worldstereo_ros.evaluation.depth import run as evaluate_depth

        evaluate_depth(
            data,
            depth_model=depth_model,
            every=every,
            json_file=json,
            sheet=sheet,
            pipelines=pipeline or (),
            device=device,
        )
        return
    from worldstereo_ros.evaluation import run

    run(
        data,
        protocol or ["single", "sparse"],
        pipeline or ([] if stages else ["geometric"]),
        stages=stages,
        json_file=json,
        sheet=sheet,
        reliability=reliability,
        every=every,
        depth_model=depth_model,
        device=device,
        with_features=features,
        poses=POSES if poses == "both" else (poses,),
        depth_source=depth_source,
    )


def _explore(data: list[str], json_file: Path | None) -> None:
    from rich.console import Console

    from worldstereo_ros.evaluation.exploration import evaluate_exploration, summary_table
    from worldstereo_ros.evaluation.output import print_table

    console = Console()
    rows = evaluate_exploration(
        data,
        json_file=json_file,
        progress=lambda line: console.print(line, style="dim", highlight=False, soft_wrap=True),
    )
    print_table(console, summary_table(rows))


def _drive_to_points(data: list[str], json_file: Path | None) -> None:
    from rich.console import Console

    from worldstereo_ros.evaluation.output import print_table
    from worldstereo_ros.evaluation.point_goals import evaluate_point_goals, summary_table

    console = Console()
    rows = evaluate_point_goals(
        data,
        json_file=json_file,
        progress=lambda line: console.print(line, style="dim", highlight=False, soft_wrap=True),
    )
    print_table(console, summary_table(rows))
