"""`worldstereo view`: a result, a map, a cloud or a sequence in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Output folder of demo, imagine or reconstruct, saved map (.wsmap), point cloud (.ply, .pcd), splats "
            "(.ply, .spz, .glb), mesh (.glb, .ply), or posed sequence.",
        ),
    ],
    port: Annotated[
        int, typer.Option(metavar="PORT", help="TCP port to listen on; 0 takes a free one.", rich_help_panel="Server")
    ] = 8080,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for all networks.",
            rich_help_panel="Server",
        ),
    ] = "127.0.0.1",
) -> None:
    """View clouds, splats, meshes, cameras, paths and images in the browser."""
    from worldstereo_ros.visualization.viewer.app import serve

    serve(path, host=host, port=port)
