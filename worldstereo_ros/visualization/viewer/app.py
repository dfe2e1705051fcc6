"""The server of `worldstereo view` and the controls of its page.

`loading` reads files, `scene` draws the 3-D part, `panels` renders text and images.
"""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.visualization.images import OBSERVED_COLOUR
from worldstereo_ros.visualization.viewer.addresses import check_address, port_taken
from worldstereo_ros.visualization.viewer.loading import Viewable, ViewableError, load_viewable
from worldstereo_ros.visualization.viewer.panels import image_strip, paragraph, summary, view_images
from worldstereo_ros.visualization.viewer.points import COLOURINGS
from worldstereo_ros.visualization.viewer.scene import ViewerScene
from worldstereo_ros.visualization.viewer.viewpoints import Viewpoint, from_above, overview

if TYPE_CHECKING:
    import viser

__all__ = ["Page", "Viewable", "ViewableError", "check_address", "load_viewable", "open_page", "serve"]

SUBSTEPS = 6  # camera steps between two views of the path


class ViewerUnavailableError(WorldStereoError, RuntimeError):
    """The viewer cannot be started; the message says why and what to do."""


def serve(path: str | Path, *, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serves a page that shows `path` in the browser, until Ctrl-C.

    Args:
        path: saved map, folder of results, cloud, splats, mesh, or posed sequence; see `load_viewable`.
        host: address to listen on; 127.0.0.1 can be reached from this machine only.
        port: port to listen on; 0 takes a free one.

    Raises:
        ViewableError: the path cannot be shown.
        AddressError: the port is taken, or the address is not of this machine.
        ViewerUnavailableError: viser is not installed.
    """
    import rich

    _import_viser()
    check_address(host, port)
    rich.print(f"Reading {path} ...")
    viewable = load_viewable(path)
    page = None
    try:
        page = open_page(viewable, host=host, port=port)
        for note in viewable.notes:
            rich.print(f"  {note}")
        rich.print(f"Open [bold]{page.url}[/bold] in a browser. Press Ctrl-C to stop.")
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        if page is not None:
            page.stop()


def open_page(viewable: Viewable, *, host: str = "127.0.0.1", port: int = 8080) -> Page:
    """Starts the server and returns; `Page.stop` ends it. Arguments and exceptions are those of `serve`."""
    import rich

    viser = _import_viser()
    check_address(host, port)
    console = rich.get_console()
    quiet, console.quiet = console.quiet, True  # viser prints its own table of addresses
    try:
        server = viser.ViserServer(host=host, port=port, label=f"worldstereo: {viewable.name}", verbose=False)
    finally:
        console.quiet = quiet
    if port and server.get_port() != port:  # taken since the check: viser uses the next one
        server.stop()
        raise port_taken(host, port)
    try:
        return Page(server, viewable)
    except BaseException:
        server.stop()
        raise


def _import_viser() -> Any:
    try:
        import viser
    except ImportError:
        raise ViewerUnavailableError("The viewer needs viser, which is not installed: pip install '.[view]'") from None
    return viser


# --- the page ---------------------------------------------------------------------------------------------------------


class Page:
    """The page's controls and their callbacks; all browsers that have the page open share them.

    Attributes:
        server: the viser server.
        viewable: what the page shows.
        scene: the 3-D part.
        index: index of the selected view in `viewable.slider_views`.
        url: address of the page.
    """

    def __init__(self, server: viser.ViserServer, viewable: Viewable) -> None:
        self.server, self.viewable = server, viewable
        self.scene = ViewerScene(server, viewable)
        self.index = 0
        self._lock = threading.RLock()  # viser runs callbacks in many threads
        self._stopped, self._play = threading.Event(), threading.Event()
        self._saved_cameras: dict[int, tuple[np.ndarray, ...]] = {}  # of each browser, before it followed the path
        self._route = _route(viewable.slider_views)
        host = server.get_host()
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        self.url = f"http://{host}:{server.get_port()}"
        viewpoint = overview(viewable)
        camera = server.initial_camera
        camera.up, camera.fov = viewable.up, viewpoint.fov
        camera.position, camera.look_at = viewpoint.position, viewpoint.look_at
        camera.near, camera.far = 0.002 * self.scene.size, 200 * self.scene.size
        server.gui.configure_theme(
            control_width="large", show_logo=False, show_share_button=False, brand_color=OBSERVED_COLOUR
        )
        server.gui.main_panel.dock_right()
        server.gui.main_panel.set_width(350)
        self._strip: Any = None
        self._time: Any = None
        self._add_controls()
        self._thread: threading.Thread | None = None
        if viewable.slider_views:
            self.select(0)
            server.on_client_connect(lambda client: self._move_cameras(self.index * SUBSTEPS, [client]))
            self._thread = threading.Thread(target=self._play_loop, name="play", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the server and its threads."""
        import rich

        self._stopped.set()
        self._play.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        console = rich.get_console()
        quiet, console.quiet = console.quiet, True
        try:
            self.server.stop()
        finally:
            console.quiet = quiet

    def select(self, index: int) -> None:
        """Selects view `index` of `viewable.slider_views`: shows its images and frustum, and follows its camera."""
        with self._lock:
            self.index = index
            with self.server.atomic():
                self.scene.select(index)
                self._strip.content = image_strip(self.viewable.slider_views[index])
                self._slider.value = index + 1
                if self._time is not None and self.viewable.times_s is not None:
                    self._time.value = f"{self.viewable.times_s[index]:.2f} s"
            self._move_cameras(index * SUBSTEPS)

    def follow(self, following: bool) -> None:
        """Looks through the cameras of the path, or returns each browser to its own viewpoint."""
        with self._lock:
            if following == self.scene.following:
                return
            self.scene.following = following
            self.scene.refresh()
            if following:
                for client in self.server.get_clients().values():
                    camera = client.camera
                    current = (camera.up_direction, camera.position, camera.look_at, np.array(camera.fov))
                    self._saved_cameras[client.client_id] = tuple(np.array(part) for part in current)
                self._move_cameras(self.index * SUBSTEPS)
                return
            for client in self.server.get_clients().values():
                start = overview(self.viewable)
                default = (self.viewable.up, start.position, start.look_at, np.array(start.fov))
                up, position, look_at, fov = self._saved_cameras.get(client.client_id, default)
                _set_camera(client, Viewpoint(position, look_at, float(fov)), up)
            self._saved_cameras.clear()

    def play(self, playing: bool) -> None:
        """Steps along the path in a loop, or pauses."""
        (self._play.set if playing else self._play.clear)()
        self._button.label = "Pause" if playing else "Play"

    def show_moving(self, shown: bool) -> None:
        """Shows or hides the points that move."""
        with self._lock:
            self.scene.moving.shown = shown
            self.scene.moving.refresh()

    def _move_cameras(self, step: int, clients: list[Any] | None = None) -> None:
        """Moves the browsers' cameras to a step of the route, if they follow the path."""
        if not self.scene.following:
            return
        pose = self._route[min(step, len(self._route) - 1)]
        camera = self.viewable.slider_views[self.index].camera
        viewpoint = Viewpoint(
            pose[:3, 3],
            pose[:3, 3] + pose[:3, 2] * 0.5 * self.scene.size,
            float(2 * np.arctan(0.5 * camera.height / camera.fy)),
        )
        for client in self.server.get_clients().values() if clients is None else clients:
            _set_camera(client, viewpoint, -pose[:3, 1])

    def _play_loop(self) -> None:
        """Runs in the thread that plays: selects the views one by one, moves only the camera between them."""
        step = 0
        while not self._stopped.is_set():
            self._play.wait()
            if self._stopped.wait(1 / (SUBSTEPS * self._speed.value)) or not self._play.is_set():
                continue
            with self._lock:
                if step // SUBSTEPS != self.index:  # the slider was moved meanwhile
                    step = self.index * SUBSTEPS
                step = (step + 1) % len(self._route)
                if step % SUBSTEPS == 0:
                    self.select(step // SUBSTEPS)
                else:
                    self._move_cameras(step)

    def _add_controls(self) -> None:
        gui, viewable, scene = self.server.gui, self.viewable, self.scene
        gui.add_html(summary(viewable, scene.point_count))
        if viewable.slider_views:
            over_time = viewable.times_s is not None
            with gui.add_folder("Imagined views" if viewable.imagined else "Time" if over_time else "Views"):
                count = len(viewable.slider_views)
                self._slider = gui.add_slider(
                    "Frame" if over_time else "View", 1, max(count, 2), 1, 1, disabled=count == 1
                )
                self._time = gui.add_text("Time", "0.00 s", disabled=True) if over_time else None
                self._button = gui.add_button("Play", disabled=count == 1, color=OBSERVED_COLOUR)
                self._speed = gui.add_slider("Views per second", 1, 12, 1, 4)
                self._follow = gui.add_checkbox("Follow the path", False)
            self._slider.on_update(lambda _: self._on_slider())
            self._button.on_click(lambda _: self.play(not self._play.is_set()))
            self._follow.on_update(lambda _: self.follow(self._follow.value))
            panel = gui.add_panel()
            with panel.add_tab("Selected view"):
                self._strip = gui.add_html("")
            panel.float(x=14, y=-14, width=212 * max(len(view_images(viewable.slider_views[0])), 2))
        with gui.add_folder("Show"):
            if set(viewable.classes) - {Provenance.UNKNOWN, Provenance.OBSERVED}:
                for kind in viewable.classes:
                    self._add_class_toggle(kind)
                colouring = gui.add_dropdown("Colours", COLOURINGS, initial_value=scene.colouring)
                colouring.on_update(lambda _: scene.recolour(colouring.value))
                self._add_unsure_toggle()
                self._add_thresholds()
            for label, attribute in scene.representations:
                self._add_toggle(label, attribute)
            if scene.moving.handle is not None:
                moving = gui.add_checkbox("Moving points", True, hint="Of the selected frame, tinted red.")
                moving.on_update(lambda _: self.show_moving(moving.value))
            if len(viewable.points):
                size = gui.add_slider("Point size", 0.2, 3.0, 0.1, 1.0)
                size.on_update(lambda _: scene.resize_points(size.value))
            if scene.has_ceiling:
                self._add_toggle("Hide the ceiling", "hide_ceiling")
            if viewable.observed_views:
                self._add_toggle("Observed cameras", "show_observed_cameras")
            if viewable.imagined or len(viewable.path) > 1:
                self._add_toggle("Path and its cameras", "show_path")
            if viewable.slider_views:
                images = gui.add_checkbox("Images", True)
                images.on_update(lambda _: scene.show_images(images.value))
            if scene.grid is not None:
                grid = gui.add_checkbox("Grid", True)
                grid.on_update(lambda _: setattr(scene.grid, "visible", grid.value))
        for label, make_viewpoint in (("Overview", overview), ("From above", from_above)):
            button = gui.add_button(label, color="gray")
            button.on_click(lambda event, make=make_viewpoint: self._look_from(event.client, make(viewable)))
        gui.add_html(paragraph("Drag to turn, right-drag to move, scroll to zoom. Click a camera to select it."))
        for handle, view in (*scene.observed_frusta, *scene.path_frusta):
            self._select_on_click(handle, view)

    def _select_on_click(self, handle: Any, view: View) -> None:
        """Makes a click on a frustum select its view, if it is one of the slider's."""
        index = next((i for i, other in enumerate(self.viewable.slider_views) if other is view), None)
        if index is not None:
            handle.on_click(lambda _: self.select(index))

    def _add_toggle(self, label: str, attribute: str) -> None:
        """Adds a checkbox for an attribute of the scene."""
        box = self.server.gui.add_checkbox(label, getattr(self.scene, attribute))

        def update(_: Any) -> None:
            with self._lock:
                setattr(self.scene, attribute, box.value)
                self.scene.refresh()

        box.on_update(update)

    def _add_class_toggle(self, kind: Provenance) -> None:
        """Adds a checkbox for the points of a class."""
        box = self.server.gui.add_checkbox(f"{kind.name.capitalize()} points", True)

        def update(_: Any) -> None:
            with self._lock:
                (self.scene.shown_classes.add if box.value else self.scene.shown_classes.discard)(kind)
                self.scene.refresh()

        box.on_update(update)

    def _add_unsure_toggle(self) -> None:
        """Adds a checkbox for imagined points whose distance is unsure, if there are any."""
        if not self.scene.unsure_count:
            return
        label, hint = f"Unsure points ({self.scene.unsure_count:,})", "Imagined: likely wrong, or alone in the air."
        box = self.server.gui.add_checkbox(label, self.scene.show_unsure, hint=hint)

        def update(_: Any) -> None:
            with self._lock, self.server.atomic():
                self.scene.show_unsure = box.value
                self.scene.filter_points()

        box.on_update(update)

    def _add_thresholds(self) -> None:
        """Adds sliders that hide points of low confidence, for the confidences that the points have."""
        named = {"Colour confidence": self.viewable.confidence, "Depth confidence": self.viewable.depth_confidence}
        sliders = {
            label: self.server.gui.add_slider(label, 0.0, 1.0, 0.05, 0.0, hint="Hides points of lower confidence.")
            for label, values in named.items()
            if values is not None
        }

        def update(_: Any) -> None:
            with self._lock, self.server.atomic():
                self.scene.filter_points(*(sliders[label].value if label in sliders else 0.0 for label in named))

        for slider in sliders.values():
            slider.on_update(update)

    def _on_slider(self) -> None:
        with self._lock:
            if self._slider.value - 1 != self.index:
                self.select(self._slider.value - 1)

    def _look_from(self, client: Any, viewpoint: Viewpoint) -> None:
        if self.viewable.slider_views:
            self._follow.value = False
        if client is not None:
            _set_camera(client, viewpoint, self.viewable.up)


def _set_camera(client: Any, viewpoint: Viewpoint, up: np.ndarray) -> None:
    camera = client.camera
    with client.atomic():
        camera.up_direction, camera.fov = up, viewpoint.fov
        camera.position = viewpoint.position
        camera.look_at = viewpoint.look_at


def _route(views: tuple[View, ...]) -> np.ndarray:
    """(F * SUBSTEPS, 4, 4): SUBSTEPS camera poses from each view to the next; the last view is repeated."""
    poses = [view.world_from_camera for view in views]
    steps = [interpolate_poses(np.stack(pair), SUBSTEPS + 1)[:-1] for pair in itertools.pairwise(poses)]
    return np.concatenate([*steps, np.stack(poses[-1:] * SUBSTEPS)]) if poses else np.zeros((0, 4, 4))
