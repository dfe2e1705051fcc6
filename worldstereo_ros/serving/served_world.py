"""A world model whose views a server imagines, and that imagines by itself where the server does not answer.

The robot keeps its memories, so that nothing is lost with the connection. The server has the same ones: it gets each
observation as the robot remembered it, in order, and all of the memories at once where it lost them, or the robot
changed them otherwise (a map was loaded, imagined views were remembered). Equal memories, seeds and models give equal
views, wherever they are imagined.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.memory.archive import save_archive
from worldstereo_ros.memory.insert_report import InsertReport
from worldstereo_ros.memory.path_clearance import PATH_CLEARANCE_M, blocked_poses
from worldstereo_ros.pipelines.base import OnStep
from worldstereo_ros.serving.client import OnWait, ServeClient, Step, UnreachableError
from worldstereo_ros.serving.errors import RESYNC_CODES, ServingError
from worldstereo_ros.serving.limits import MemorySettings
from worldstereo_ros.serving.view_messages import plain_camera
from worldstereo_ros.utils.errors import InputError, WorldStereoError
from worldstereo_ros.world import WorldModel, views_for_bank

logger = logging.getLogger(__name__)

MAX_UNSENT = 64  # observations; beyond, the memories are sent as a whole
MAX_UNSENT_BYTES = 256 * 10**6
RETRY_S = 10.0  # after which a server that failed is asked again
REFUSED_RETRY_S = 60.0  # after which a server that refused the token or the robot is
WARN_PERIOD_S = 60.0  # between two warnings of the same kind
BACKGROUND_PERIOD_S = LINE_PERIOD_S = 0.5
# Of the request alone: the next one may be answered.
_OF_THE_REQUEST = ("bad_request", "too_large", "timeout", "model_error", "fault", "no_observation")
_REFUSALS = ("unauthorized", "not_found", "method_not_allowed")


class ServedWorld(WorldModel):
    """A `WorldModel` that has its views imagined by a server.

    Attributes:
        client: requests to the server.
        backend: who imagined last, for people: the server, or this computer and why.
    """

    def __init__(
        self, *arguments: Any, client: ServeClient, clock: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        """Creates a world model.

        Args:
            arguments, options: of `WorldModel`; the pipeline imagines where the server does not.
            client: requests to the server.
            clock: seconds, monotonic.
        """
        super().__init__(*arguments, **options)
        self.client, self._clock = client, clock
        self.backend = f"serve {client.url}, not asked yet"
        # Guards the client; held while views come, and released by whichever thread ends that.
        self._line = threading.Lock()
        # Observations that the server lacks; None: it lacks more, and gets the memories as a whole.
        self._unsent: deque[View] | None = deque()
        self._has_session = False
        self._mirrored = (self.cloud, self.bank)
        self._retry_at = -np.inf
        self._imagining_thread = 0
        self._warned_at: dict[str, float] = {}
        self._failing = True  # until it has answered once
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    # --- changes of the memories ---

    def observe(self, view: View) -> InsertReport:
        """Remembers a view, see `WorldModel.observe`; it is sent to the server in the background."""
        view = replace(view, camera=plain_camera(view.camera))
        report = super().observe(view)
        has_depth = view.depth is not None and bool((view.depth > 0).any())
        # Depth that was estimated here is not estimated again there, perhaps by another network.
        sent = view if has_depth else self.newest_observation
        unsent = self._unsent
        if unsent is not None and sent is not None:
            unsent.append(sent)
            if len(unsent) > MAX_UNSENT or sum(_bytes(one) for one in unsent) > MAX_UNSENT_BYTES:
                self._unsent = None
            if self._thread is None:
                arguments = (weakref.ref(self), self._wake)
                self._thread = threading.Thread(target=_send_in_background, args=arguments, daemon=True)
                self._thread.start()
            self._wake.set()
        return report

    def remember(self, view: ImaginedView, *, in_bank: bool = True) -> None:
        """Adds an imagined view to the memories, see `WorldModel.remember`."""
        super().remember(view, in_bank=in_bank)
        self._unsent = None

    def reset(self) -> None:
        """Clears both memories, here and, with the next request, on the server."""
        super().reset()
        self._unsent, self._has_session = deque(), False

    def load(self, path: Path, *, metric_only: bool = False) -> None:
        """Replaces both memories by those of a file, see `WorldModel.load`."""
        super().load(path, metric_only=metric_only)
        self._unsent, self._mirrored = None, (self.cloud, self.bank)

    # --- imagining ---

    def imagine(
        self,
        world_from_camera: np.ndarray,
        camera: Camera,
        *,
        prompt: str = "",
        seed: int = 0,
        remember: bool = False,
        on_step: OnStep | None = None,
        clearance: float = PATH_CLEARANCE_M,
    ) -> Iterator[ImaginedView]:
        """Imagines the views along a path on the server, else here; see `WorldModel.imagine`.

        A server that is lost on the way leaves the rest of the path to this computer.
        """
        options: dict[str, Any] = {"prompt": prompt, "seed": seed, "remember": remember, "clearance": clearance}
        camera = plain_camera(camera)
        # Checks the arguments, and computes nothing before it is asked for a view.
        local = super().imagine(world_from_camera, camera, on_step=on_step, **options)
        return self._imagine_served(local, check_poses(world_from_camera), camera, on_step, options)

    def _imagine_served(
        self,
        local: Iterator[ImaginedView],
        poses: np.ndarray,
        camera: Camera,
        on_step: OnStep | None,
        options: dict[str, Any],
    ) -> Iterator[ImaginedView]:
        count, done = len(poses), 0
        error: WorldStereoError | None = None
        if self._clock() >= self._retry_at and self._take_line(on_step):
            complete = False
            try:
                for view in self._ask(poses, camera, on_step, options):
                    if options["remember"]:  # before it is given, as the server did
                        super().remember(view, in_bank=view.index in views_for_bank(count, self.client.clip_length))
                    done += 1
                    yield view
                complete = True
                self._on_success()
            except (UnreachableError, ServingError, InputError) as failure:
                error = failure
                self._on_failure(failure, done, count)
            finally:
                if options["remember"] and not complete:
                    self._unsent = None  # how far the server came is not known
                self._imagining_thread = 0
                self._line.release()
            if complete:
                return
        if not done:
            yield from local
            return
        assert error is not None
        blocked = blocked_poses(self.cloud, poses, options["clearance"])
        for view in super().imagine(poses[done:], camera, on_step=on_step, **options):
            index = view.index + done
            yield replace(view, index=index, count=count, blocked=bool(blocked[index]))

    def _take_line(self, on_step: OnStep | None) -> bool:
        """Waits until an observation was sent; False if views of this thread are on their way and not taken."""
        while not self._line.acquire(timeout=LINE_PERIOD_S):
            if self._imagining_thread == threading.get_ident():
                return False
            if on_step is not None:
                on_step("waiting", 0, 1)
        self._imagining_thread = threading.get_ident()
        return True

    def _ask(
        self, poses: np.ndarray, camera: Camera, on_step: OnStep | None, options: dict[str, Any]
    ) -> Iterator[ImaginedView]:
        """Yields the views of the server. Raises ServingError, UnreachableError, InputError."""
        done = 0
        for attempt in (0, 1):
            try:
                self._bring_into_step(None if on_step is None else lambda: on_step("waiting", 0, 1))
                for item in self.client.imagine(poses, camera, **options):
                    if isinstance(item, Step):
                        if on_step is not None:
                            on_step(item.stage, item.step, item.steps)
                        continue
                    expected = (done, len(poses), camera)
                    if (item.index, item.count, item.camera) != expected or (
                        item.world_from_camera != poses[done]
                    ).any():
                        raise UnreachableError(f"The server {self.client.url} sent another view than was asked for.")
                    done += 1
                    yield item
                if done != len(poses):
                    raise UnreachableError(f"The server {self.client.url} sent {done} of {len(poses)} views.")
                return
            except ServingError as error:
                if error.code not in RESYNC_CODES or attempt or done:
                    raise
                self._on_session_lost(error)

    # --- the memories on the server; the caller has the line ---

    def _bring_into_step(self, on_wait: OnWait | None) -> None:
        """Makes the memories on the server equal to those here; on the thread that owns these."""
        if self._mirrored[0] is not self.cloud or self._mirrored[1] is not self.bank:
            self._unsent, self._mirrored = None, (self.cloud, self.bank)
        whole = self._unsent is None
        if whole:
            self._has_session = False
        self._begin()
        if whole:
            self.client.restore(self._archive(), on_wait=on_wait)
            self._unsent = deque()
        while self._unsent:
            self._send_next(on_wait)

    def _begin(self) -> None:
        if not self._has_session:
            self.client.reset(MemorySettings.of(self.cloud, self.bank))
            self._has_session = True

    def _send_next(self, on_wait: OnWait | None = None) -> None:
        unsent = self._unsent
        if unsent:
            self.client.observe(unsent[0], on_wait=on_wait)
            unsent.popleft()

    def _archive(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="worldstereo_") as folder:
            path = Path(folder) / "memories.wsmap"
            save_archive(path, self.cloud, self.bank, {"metric": self.metric})
            return path.read_bytes()

    def send_unsent(self) -> None:
        """Sends one observation that the server lacks, if it can be asked; called in the background."""
        if not self._unsent or self._clock() < self._retry_at or not self._line.acquire(blocking=False):
            return
        try:
            self._begin()
            self._send_next()
        except ServingError as error:
            if error.code in RESYNC_CODES:
                self._on_session_lost(error)
                return
            if error.code in _OF_THE_REQUEST:
                self._unsent = None  # it would fail again
            self._on_failure(error, 0, 0)
        except (UnreachableError, InputError) as error:
            # Sent again; if it had arrived, its revision tells.
            self._on_failure(error, 0, 0)
        finally:
            self._line.release()

    # --- what people are told ---

    def _on_success(self) -> None:
        self.backend = f"serve {self.client.url}, model {self.client.model}"
        if self._failing:
            logger.info("The server %s imagines, with the model '%s'.", self.client.url, self.client.model)
        self._failing = False
        self._warned_at.clear()

    def _on_session_lost(self, error: ServingError) -> None:
        self._has_session, self._unsent = False, None
        if self._may_warn(error.code):
            why = str(error).partition(". ")[0]  # what to do is done here
            logger.warning("%s: %s. The memories are sent again.", self.client.url, why)

    def _on_failure(self, error: WorldStereoError, done: int, count: int) -> None:
        code = error.code if isinstance(error, ServingError) else "unreachable"
        self.client.close()
        wait = RETRY_S
        if code in _OF_THE_REQUEST:
            wait = 0.0
        elif code in _REFUSALS:
            wait = REFUSED_RETRY_S
        elif isinstance(error, ServingError) and error.retry_after:
            wait = error.retry_after
        self._retry_at = self._clock() + wait
        self._failing = True
        self.backend = f"local, model {self.pipeline.name}: {error}"
        if self._may_warn(code):
            what = f"The last {count - done} of {count} views are" if done else "Views are"
            again = f"; the server is asked again in {wait:g} s" if wait else ""
            logger.warning("%s %s imagined on this computer, by '%s'%s.", error, what, self.pipeline.name, again)

    def _may_warn(self, code: str) -> bool:
        now = self._clock()
        if now - self._warned_at.get(code, -np.inf) < WARN_PERIOD_S:
            return False
        self._warned_at[code] = now
        return True


def _send_in_background(reference: weakref.ref[ServedWorld], wake: threading.Event) -> None:
    """Sends observations as long as the world model exists, which this does not keep alive."""
    while True:
        wake.wait(BACKGROUND_PERIOD_S)
        wake.clear()
        world = reference()
        if world is None:
            return
        try:
            world.send_unsent()
            if world._unsent and world._clock() >= world._retry_at and not world._line.locked():
                wake.set()
        except Exception:
            logger.exception("Unexpected error while observations were sent.")
        del world


def _bytes(view: View) -> int:
    return view.image.nbytes + (0 if view.depth is None else view.depth.nbytes)
