"""`worldstereo view`: what was seen and what was imagined, in the browser, for people without RViz.

`viewable.py` loads, `viewer_scene.py` draws, `viewer_text.py` explains; here are the page's controls and the server.
"""

from __future__ import annotations

import errno
import itertools
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.geometry.views import View
from worldstereo_ros.visualization.images import OBSERVED_COLOUR
from worldstereo_ros.visualization.viewer.loading import Viewable, ViewableError, load_viewable
from worldstereo_ros.visualization.viewer.panels import paragraph, pictures_of, strip, summary
from worldstereo_ros.visualization.viewer.scene import COLOURINGS, ViewerScene, Viewpoint, from_above, overview

if TYPE_CHECKING:
    import viser

__all__ = ["Page", "Viewable", "ViewableError", "load_viewable", "open_page", "serve"]

SUBSTEPS = 6  # steps between two views of the path that one rides through


def serve(path: str | Path, *, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Shows what lies at `path` in the browser until Ctrl-C.

    Args:
        path: saved map, outcome folder, .ply or .pcd, or posed sequence; see `load_viewable`.
        host: address to listen on; 127.0.0.1 can be reached from this machine alone.
        port: port to listen on; 0 takes a free one.

    Raises:
        ViewableError: there is nothing to show.
        OSError: the port is taken, or the address is not of this machine.
        RuntimeError: viser is not installed.
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
        rich.print(f"Open [bold]{page.url}[/bold] in a browser. Ctrl-C ends.")
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        if page is not None:
            page.stop()


def open_page(viewable: Viewable, *, host: str = "127.0.0.1", port: int = 8080) -> Page:
    """Starts the server and returns at once; `Page.stop` ends it. Arguments and errors as for `serve`."""
    import rich

    viser = _import_viser()
    check_address(host, port)
    console = rich.get_console()
    quiet, console.quiet = console.quiet, True  # viser prints a table of addresses of its own
    try:
        server = viser.ViserServer(host=host, port=port, label=f"worldstereo: {viewable.name}", verbose=False)
    finally:
        console.quiet = quiet
    if port and server.get_port() != port:  # taken between the check and now; viser goes on to the next one
        server.stop()
        raise _taken(host, port)
    try:
        return Page(server, viewable)
    except BaseException:
        server.stop()
        raise


def check_address(host: str, port: int) -> None:
    """Raises OSError with a sentence where the address cannot be listened on.

    viser tries the next thousand ports without a word, and waits for ever where none of them works.
    """
    if not 0 <= port <= 65535:
        raise OSError(f"{port} is no port; a number from 0 (any free one) to 65535 was expected.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise OSError(f"'{host}' is no address of this machine. Use --host 127.0.0.1, or 0.0.0.0 for all.") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(host, port) from None
            if error.errno == errno.EACCES:
                raise OSError(f"Port {port} needs special rights. Choose one above 1023: --port 8080.") from None
            raise OSError(f"Nothing can listen on {host}:{port}: {error.strerror}. Use --host 127.0.0.1.") from None


def _taken(host: str, port: int) -> OSError:
    return OSError(f"Port {port} on {host} is taken by another program. Choose another one, such as --port {port + 1}.")


def _import_viser() -> Any:
    try:
        import viser
    except ImportError:
        raise RuntimeError("The viewer needs viser, which is not installed: pip install '.[view]'") from None
    return viser


# --- the page ---------------------------------------------------------------------------------------------------------


class Page:
    """The page's controls and what they do; they belong to everyone who has the page open.

    Attributes:
        server: the viser server. scene: the nodes of the scene.
        index: the selected view, of `viewable.stepped`.
        url: where a browser finds the page.
    """

    def __init__(self, server: viser.ViserServer, viewable: Viewable) -> None:
        self.server, self.viewable = server, viewable
        self.scene = ViewerScene(server, viewable)
        self.index = 0
        self._lock = threading.RLock()  # viser calls back from many threads
        self._stopped, self._play = threading.Event(), threading.Event()
        self._looks: dict[int, tuple[np.ndarray, ...]] = {}  # where each browser looked from before it rode
        self._route = _route(viewable.stepped)
        host = server.get_host()
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        self.url = f"http://{host}:{server.get_port()}"
        look = overview(viewable)
        camera = server.initial_camera
        camera.up, camera.fov = viewable.up, look.fov
        camera.position, camera.look_at = look.position, look.look_at
        camera.near, camera.far = 0.002 * self.scene.size, 200 * self.scene.size
        server.gui.configure_theme(
            control_width="large", show_logo=False, show_share_button=False, brand_color=OBSERVED_COLOUR
        )
        server.gui.main_panel.dock_right()
        server.gui.main_panel.set_width(350)
        self._strip: Any = None
        self._add_controls()
        self._thread: threading.Thread | None = None
        if viewable.stepped:
            self.select(0)
            server.on_client_connect(lambda client: self._ride(self.index * SUBSTEPS, [client]))
            self._thread = threading.Thread(target=self._run, name="play", daemon=True)
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
        """Shows the view `index` of `viewable.stepped`: its pictures, its frustum, and through its camera if riding."""
        with self._lock:
            self.index = index
            with self.server.atomic():
                self.scene.select(index)
                self._strip.content = strip(self.viewable.stepped[index])
                self._slider.value = index + 1
            self._ride(index * SUBSTEPS)

    def ride(self, riding: bool) -> None:
        """Looks through the cameras of the path, or goes back to where each browser looked from before."""
        with self._lock:
            if riding == self.scene.riding:
                return
            self.scene.riding = riding
            self.scene.refresh()
            if riding:
                for client in self.server.get_clients().values():
                    camera = client.camera
                    look = (camera.up_direction, camera.position, camera.look_at, np.array(camera.fov))
                    self._looks[client.client_id] = tuple(np.array(part) for part in look)
                self._ride(self.index * SUBSTEPS)
                return
            for client in self.server.get_clients().values():
                start = overview(self.viewable)
                before = (self.viewable.up, start.position, start.look_at, np.array(start.fov))
                up, position, look_at, fov = self._looks.get(client.client_id, before)
                _look_from(client, Viewpoint(position, look_at, float(fov)), up)
            self._looks.clear()

    def play(self, playing: bool) -> None:
        """Steps along the path, over and over, or stops where it is."""
        (self._play.set if playing else self._play.clear)()
        self._button.label = "Pause" if playing else "Play"

    # --- inside ---

    def _ride(self, step: int, clients: list[Any] | None = None) -> None:
        """Puts the browsers' cameras on the route, where one rides it."""
        if not self.scene.riding:
            return
        pose = self._route[min(step, len(self._route) - 1)]
        camera = self.viewable.stepped[self.index].camera
        look = Viewpoint(
            pose[:3, 3],
            pose[:3, 3] + pose[:3, 2] * 0.5 * self.scene.size,
            float(2 * np.arctan(0.5 * camera.height / camera.fy)),
        )
        for client in self.server.get_clients().values() if clients is None else clients:
            _look_from(client, look, -pose[:3, 1])

    def _run(self) -> None:
        """The thread that plays: between two views it moves the camera alone, at a view it selects."""
        step = 0
        while not self._stopped.is_set():
            self._play.wait()
            if self._stopped.wait(1 / (SUBSTEPS * self._speed.value)) or not self._play.is_set():
                continue
            with self._lock:
                if step // SUBSTEPS != self.index:  # someone moved the slider meanwhile
                    step = self.index * SUBSTEPS
                step = (step + 1) % len(self._route)
                if step % SUBSTEPS == 0:
                    self.select(step // SUBSTEPS)
                else:
                    self._ride(step)

    def _add_controls(self) -> None:
        gui, viewable, scene = self.server.gui, self.viewable, self.scene
        gui.add_html(summary(viewable, scene.shown_points))
        if viewable.stepped:
            what = "imagined views" if viewable.imagined else "views"
            with gui.add_folder(f"Step through the {what}"):
                count = len(viewable.stepped)
                self._slider = gui.add_slider("View", 1, max(count, 2), 1, 1, disabled=count == 1)
                self._button = gui.add_button("Play", disabled=count == 1, color=OBSERVED_COLOUR)
                self._speed = gui.add_slider("Views a second", 1, 12, 1, 4)
                self._rides = gui.add_checkbox("Ride the path", False)
            self._slider.on_update(lambda _: self._slid())
            self._button.on_click(lambda _: self.play(not self._play.is_set()))
            self._rides.on_update(lambda _: self.ride(self._rides.value))
            panel = gui.add_panel()
            with panel.add_tab("The selected view"):
                self._strip = gui.add_html("")
            panel.float(x=14, y=-14, width=212 * max(len(pictures_of(viewable.stepped[0])), 2))
        with gui.add_folder("Show"):
            if (~viewable.observed).any():
                self._check("Observed points", "show_observed")
                self._check("Imagined points", "show_imagined")
                colouring = gui.add_dropdown("Colours", COLOURINGS)
                colouring.on_update(lambda _: scene.recolour(colouring.value))
            if len(viewable.points):
                size = gui.add_slider("Point size", 0.2, 3.0, 0.1, 1.0)
                size.on_update(lambda _: scene.resize_points(size.value))
            if scene.has_ceiling:
                self._check("Cut the ceiling", "cut_ceiling")
            if viewable.given:
                self._check("Given cameras", "show_given")
            if viewable.imagined or len(viewable.path) > 1:
                self._check("Path, its cameras", "show_path")
            if viewable.stepped:
                pictures = gui.add_checkbox("Pictures", True)
                pictures.on_update(lambda _: scene.show_pictures(pictures.value))
            if scene.grid is not None:
                grid = gui.add_checkbox("Grid", True)
                grid.on_update(lambda _: setattr(scene.grid, "visible", grid.value))
        for label, look in (("Overview", overview), ("From above", from_above)):
            button = gui.add_button(label, color="gray")
            button.on_click(lambda event, look=look: self._go(event.client, look(viewable)))
        gui.add_html(paragraph("Drag turns, right drag moves, the wheel goes nearer. A click on a camera selects it."))
        for handle, view in (*scene.given_frusta, *scene.path_frusta):
            self._on_click(handle, view)

    def _on_click(self, handle: Any, view: View) -> None:
        """Selects the view of a frustum that is clicked, where it is one of those stepped through."""
        index = next((i for i, other in enumerate(self.viewable.stepped) if other is view), None)
        if index is not None:
            handle.on_click(lambda _: self.select(index))

    def _check(self, label: str, attribute: str) -> None:
        """A checkbox for one of the scene's attributes."""
        box = self.server.gui.add_checkbox(label, getattr(self.scene, attribute))

        def update(_: Any) -> None:
            with self._lock:
                setattr(self.scene, attribute, box.value)
                self.scene.refresh()

        box.on_update(update)

    def _slid(self) -> None:
        with self._lock:
            if self._slider.value - 1 != self.index:
                self.select(self._slider.value - 1)

    def _go(self, client: Any, look: Viewpoint) -> None:
        if self.viewable.stepped:
            self._rides.value = False
        if client is not None:
            _look_from(client, look, self.viewable.up)


def _look_from(client: Any, look: Viewpoint, up: np.ndarray) -> None:
    camera = client.camera
    with client.atomic():
        camera.up_direction, camera.fov = up, look.fov
        camera.position = look.position
        camera.look_at = look.look_at


def _route(views: tuple[View, ...]) -> np.ndarray:
    """(F * SUBSTEPS, 4, 4): SUBSTEPS steps from each view to the next; at the last one it rests."""
    poses = [view.world_from_camera for view in views]
    steps = [interpolate_poses(np.stack(pair), SUBSTEPS + 1)[:-1] for pair in itertools.pairwise(poses)]
    return np.concatenate([*steps, np.stack(poses[-1:] * SUBSTEPS)]) if poses else np.zeros((0, 4, 4))
