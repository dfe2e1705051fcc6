"""`worldstereo serve`: imagines and scores paths for many robots, over HTTP."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import MODEL, Device, Fill, Variant
from worldstereo_ros.utils.errors import InputError, first_line
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from worldstereo_ros.serving.limits import ServingLimits
    from worldstereo_ros.serving.loading import ModelSettings

NETWORK, PROCESSES, LIMITS = "Network", "Processes", "Limits of each replica"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
POLL_S = 1.0


class Engine(str, Enum):
    """What runs the replicas."""

    ray = "ray"
    local = "local"


def serve(
    token_file: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="File whose first line is the token that robots must show.", rich_help_panel=NETWORK
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 = all networks.", rich_help_panel=NETWORK)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535, rich_help_panel=NETWORK)] = 8000,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate (PEM) for https.", rich_help_panel=NETWORK)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of the certificate (PEM).", rich_help_panel=NETWORK)
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Pipeline: geometric (no weights), small (bundled), or a WorldStereo checkpoint (folder or hub id).",
            rich_help_panel=MODEL,
        ),
    ] = DEFAULT_MODEL,
    variant: Variant = "",
    fill: Fill = "auto",
    depth_model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Depth estimator for observations without depth, which nodes never send: small, a transformers depth "
            "model, or none.",
            show_default="small, loaded when it is needed",
            rich_help_panel=MODEL,
        ),
    ] = "",
    device: Device = "cpu",
    engine: Annotated[
        Engine,
        typer.Option(help="ray: replicas in processes of Ray Serve; local: one, in this.", rich_help_panel=PROCESSES),
    ] = Engine.ray,
    replicas: Annotated[
        int,
        typer.Option(
            metavar="N", help="Models; each serves its share of the robots.", min=1, max=256, rich_help_panel=PROCESSES
        ),
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="RAY",
            help="Ray cluster to run on, such as auto or HOST:6379.",
            show_default="one on this computer, for as long as the command runs",
            rich_help_panel=PROCESSES,
        ),
    ] = None,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="GPUs that Ray reserves for a replica; below 1, several share one.",
            show_default="1 with --device cuda, else 0",
            min=0,
            rich_help_panel=PROCESSES,
        ),
    ] = None,
    max_robots: Annotated[int, typer.Option(metavar="N", help="Robots.", min=1, rich_help_panel=LIMITS)] = 16,
    max_points: Annotated[
        int, typer.Option(metavar="N", help="Points in the memory of a robot.", min=1000, rich_help_panel=LIMITS)
    ] = 2_000_000,
    max_bank_memory: Annotated[
        int, typer.Option(metavar="MB", help="Views in the memory of a robot.", min=1, rich_help_panel=LIMITS)
    ] = 512,
    idle: Annotated[
        float,
        typer.Option(
            metavar="S", help="Time without a request that ends a robot's session.", min=1, rich_help_panel=LIMITS
        ),
    ] = 900.0,
) -> None:
    """Serve imagine and score_paths to many robots over HTTP, the memories of each apart.

    Nodes use it with the parameters backend: serve, serve.url and serve.token_file; the guide on a fleet lists the
    requests. Ctrl-C ends it.
    """
    from rich.console import Console

    from worldstereo_ros.serving.limits import MB, ServingLimits
    from worldstereo_ros.serving.loading import ModelSettings
    from worldstereo_ros.serving.tokens import digest_of, read_token

    digest = digest_of(read_token(token_file))
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key belong together; only one of them was given.")
    if tls_cert is not None and tls_key is not None:
        _check_tls(tls_cert, tls_key)
    if engine is Engine.local and (replicas != 1 or address is not None):
        raise InputError("--engine local is one replica in this process; --replicas and --address are for ray.")
    limits = ServingLimits(
        max_robots=max_robots, max_points=max_points, max_bank_bytes=max_bank_memory * MB, idle_s=idle
    )
    chosen = ModelSettings(model, device, variant, fill=fill, depth_model=depth_model)
    console = Console()
    scheme = "http" if tls_cert is None else "https"
    if host not in LOOPBACK and tls_cert is None:
        console.print(
            f"[yellow]{host} is reached from other computers, and http is not encrypted: the token and the images can "
            "be read on the way. Use a network that you trust, a VPN, or --tls-cert and --tls-key.[/]"
        )
    ready = f"Serving '{model}' on {scheme}://{host}:{port}, {{}}. Ctrl-C ends it."
    tls = (None if tls_cert is None else str(tls_cert), None if tls_key is None else str(tls_key))
    if engine is Engine.local:
        _serve_here(chosen, limits, digest, host, port, tls, lambda: console.print(ready.format("1 replica")))
        return
    gpus = (1.0 if device.startswith("cuda") else 0.0) if gpus_per_replica is None else gpus_per_replica
    ray_options = {"replicas": replicas, "gpus_per_replica": gpus}
    count = f"{replicas} replica{'s' if replicas > 1 else ''}"
    _serve_with_ray(
        chosen, limits, digest, host, port, tls, address, ray_options, lambda: console.print(ready.format(count))
    )


def _check_tls(certificate: Path, key: Path) -> None:
    """Raises InputError if a server cannot use the files."""
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(
            f"{certificate} and {key} cannot be used for https ({error.strerror or error}); a certificate and its key, "
            "both in PEM, were expected."
        ) from None


def _listen(host: str, port: int) -> Any:
    """A socket that listens. Raises InputError if the port is taken, or the address is not of this computer."""
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{host}:{port} cannot be listened on: {reason}. Choose another --port or --host.") from None


def _serve_here(
    chosen: ModelSettings, limits: ServingLimits, digest: str, host: str, port: int, tls: tuple, say_ready: Any
) -> None:
    try:
        import uvicorn

        from worldstereo_ros.serving.app import make_app
    except ImportError as error:
        raise InputError(
            f"A server needs uvicorn and starlette ({error}). Install them with: pip install 'worldstereo_ros[serve]'."
        ) from None
    from worldstereo_ros.serving.loading import load_service

    with _listen(host, port) as listening:
        service = load_service(chosen, limits)
        config = uvicorn.Config(
            make_app(service, digest, limits), log_level="warning", ssl_certfile=tls[0], ssl_keyfile=tls[1]
        )
        say_ready()
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            service.close()


def _serve_with_ray(
    chosen: ModelSettings,
    limits: ServingLimits,
    digest: str,
    host: str,
    port: int,
    tls: tuple,
    address: str | None,
    options: dict[str, Any],
    say_ready: Any,
) -> None:
    import time

    try:
        import ray
        from ray import serve as ray_serve
    except ImportError:
        raise InputError(
            "Ray Serve is not installed. Install it with: pip install 'worldstereo_ros[serve]', or use --engine local."
        ) from None
    from worldstereo_ros.serving.ray_app import APP, build_application, start_ray, why_not_started

    if address is None:
        _listen(host, port).close()
    count = options["replicas"]
    start_ray(address, needed_cpus=count, needed_gpus=count * options["gpus_per_replica"])
    try:
        http = {"host": host, "port": port, "ssl_certfile": tls[0], "ssl_keyfile": tls[1]}
        ray_serve.start(proxy_location="HeadOnly", http_options=http)
        try:
            ray_serve.run(build_application(chosen, limits, digest, **options), name=APP, route_prefix="/")
        except RuntimeError as error:
            raise InputError(f"The replicas did not start: {why_not_started() or first_line(error)}") from None
        say_ready()
        while True:
            time.sleep(POLL_S)
    finally:
        if address is None:
            ray_serve.shutdown()
        else:
            ray_serve.delete(APP)
        ray.shutdown()
