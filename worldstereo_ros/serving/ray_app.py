"""The server as a Ray Serve application: several processes, on one computer or a cluster.

Which process holds the memories of a robot must never be a matter of chance. Ray Serve's routing to the replicas of one
deployment prefers, but does not promise, the same replica for the same key. So each holder of memories is a deployment
of its own with one replica, and the robot's id, by its hash, names the deployment: requests of a robot always go to the
same one, without a table that could be lost. If a holder dies, Ray starts it again, empty; its robots are told that
their session is lost and send their memories again, while those of the other holders notice nothing. The HTTP part
holds nothing, so that it may die, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from worldstereo_ros.serving.addresses import check_robot
from worldstereo_ros.serving.calls import Call, Part
from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.limits import ServingLimits
from worldstereo_ros.serving.loading import ModelSettings, load_service
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.ray_cluster import connect_ray

APP = "worldstereo"
HEALTH_TIMEOUT_S = 5.0
RESTART_S = 5.0
MAX_ONGOING = 1000  # the service bounds its queues itself, with a sentence


def holder_of(robot: str, count: int) -> int:
    """Number of the holder of a robot's memories, 0 to count - 1; the same in every process and on every computer."""
    return int.from_bytes(hashlib.sha256(robot.encode()).digest()[:8], "big") % count


class MemoryHolder:
    """Holds the memories of some robots, and the model that imagines for them; one process."""

    def __init__(self, chosen: ModelSettings, limits: ServingLimits) -> None:
        self._service = load_service(chosen, limits)

    async def answer(self, call: Call) -> AsyncIterator[Part]:
        """The parts of an answer."""
        async for part in self._service.answer(call):
            yield part

    async def health(self) -> dict[str, Any]:
        """What it does at the moment."""
        return await self._service.health()


class HolderAnswers:
    """Hands each request to the holder of the robot's memories.

    Args:
        handles: of the holders, in order.
    """

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    async def health(self) -> dict[str, Any]:
        """Sums over the holders, and how many of them answer."""
        found = await asyncio.gather(*(self._health_of(handle) for handle in self._handles))
        alive = [one for one in found if one is not None]
        return {
            "model": alive[0]["model"] if alive else "",
            "robots": sum(one["robots"] for one in alive),
            "waiting": sum(one["waiting"] for one in alive),
            "replicas": len(found),
            "replicas_alive": len(alive),
        }

    async def _health_of(self, handle: Any) -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(handle.health.remote(), HEALTH_TIMEOUT_S)
        except Exception:
            return None

    async def answer(self, call: Call) -> AsyncGenerator[Part, None]:
        """The parts of an answer. Raises ServingError unavailable if the holder is lost."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        check_robot(call.robot)
        handle = self._handles[holder_of(call.robot, len(self._handles))]
        response = handle.options(stream=True).answer.remote(call)
        try:
            async for part in response:
                yield part
        except (RayError, RayServeException):
            raise ServingError(
                "unavailable",
                f"The process with the memories of the robot '{call.robot}' was lost, and is started again.",
                retry_after=RESTART_S,
            ) from None
        finally:
            response.cancel()  # of a client that went away; an answer that is complete stays so


def build_application(
    chosen: ModelSettings,
    limits: ServingLimits,
    token_digest: str,
    *,
    replicas: int,
    cpus_per_replica: float = 1.0,
    gpus_per_replica: float = 0.0,
) -> Any:
    """The application for `ray.serve.run`.

    Args:
        chosen: what each holder of memories loads.
        limits: of each holder.
        token_digest: of the token that requests must show.
        replicas: number of holders.
        cpus_per_replica, gpus_per_replica: what Ray reserves for each; they may be fractions.
    """
    from ray import serve

    names = [f"memories-{index}" for index in range(replicas)]
    resources = {"num_cpus": cpus_per_replica, "num_gpus": gpus_per_replica}
    holders = [
        serve.deployment(
            name=name, num_replicas=1, max_ongoing_requests=MAX_ONGOING, ray_actor_options=resources
        )(MemoryHolder).bind(chosen, limits)
        for name in names
    ]  # fmt: skip
    ingress = serve.deployment(
        name="http", num_replicas=1, max_ongoing_requests=MAX_ONGOING, ray_actor_options={"num_cpus": 0}
    )(serve.ingress(_http_builder(names, token_digest, limits))())
    return ingress.bind(*holders)


def _http_builder(names: list[str], token_digest: str, limits: ServingLimits) -> Callable[[], Any]:
    def build() -> Any:
        from ray import serve

        from worldstereo_ros.serving.app import make_app

        handles = [serve.get_deployment_handle(name, app_name=APP) for name in names]
        return make_app(HolderAnswers(handles), token_digest, limits)

    return build


def start_ray(address: str | None, *, needed_cpus: float, needed_gpus: float = 0.0) -> None:
    """Connects to a cluster, or starts one on this computer.

    Raises:
        InputError: there is no cluster at the address, none could be started, or it has too few processors.
    """
    import ray

    connect_ray(ray, address or "")
    has = ray.cluster_resources()
    for name, needed, option in (("CPU", needed_cpus, "--replicas"), ("GPU", needed_gpus, "--gpus-per-replica")):
        if needed > has.get(name, 0) + 1e-9:
            ray.shutdown()
            raise InputError(
                f"The replicas need {needed:g} {name}s, and the Ray cluster has {has.get(name, 0):g}; lower {option}."
            )


def why_not_started() -> str:
    """What a replica that did not start failed with, by Ray's record of it; "" if that says nothing."""
    from ray import serve

    for deployment in serve.status().applications[APP].deployments.values():
        lines = [line.strip() for line in deployment.message.splitlines()]
        found = [line for line in lines if re.match(r"[\w.]+(Error|Exception): .", line)]
        if found:
            return found[-1].partition(": ")[2]
    return ""
