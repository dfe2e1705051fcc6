"""Shared fixtures: the development data, a single thread, models of toy size, and panoramas."""

import fcntl
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import SHARED

# Processes that a shell starts in the background inherit an ignored SIGINT; the tests of Ctrl-C must pass there, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Most of what is allocated here lives to the end; searching it for garbage all the time took a fifth of the suite.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.freeze()


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process of this run that asks for it makes; the others wait for it. None changes it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / f"shared_{name}"
    with (root / f"shared_{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if lock.read() != "made":
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            make(folder)
            lock.write("made")
    return folder


def development_data(folder: Path, what: str) -> Path:
    """`folder`; without it the test is skipped, or fails where WORLDSTEREO_REQUIRE_SHARED is set (as in CI)."""
    if not folder.is_dir():
        reason = f"{what} ({folder}) are not on this machine"
        if os.environ.get("WORLDSTEREO_REQUIRE_SHARED"):
            pytest.fail(f"{reason}, and WORLDSTEREO_REQUIRE_SHARED is set")
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return development_data(SHARED / "data", "the development data sets")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    folder = Path(os.environ.get("WORLDSTEREO_GOLDEN", SHARED / "golden"))
    return development_data(folder, "the golden reference numbers")


@pytest.fixture(scope="session")
def golden_anyrecon() -> Path:
    folder = Path(os.environ.get("WORLDSTEREO_GOLDEN_ANYRECON", SHARED / "golden" / "anyrecon"))
    return development_data(folder, "the golden reference numbers of AnyRecon")


@pytest.fixture
def no_network(monkeypatch) -> list[str]:
    """Lets the hub client try to reach the network, and fails each attempt; a list of the attempts."""
    import socket

    attempts: list[str] = []

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        attempts.append(str(host))
        raise OSError(f"the test refused to connect to {host}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: refuse(address))
    return attempts


@contextmanager
def single_thread() -> Iterator[None]:
    """Small tensors are slower on many threads, in particular on a machine under load."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limits a whole test file to one thread: `pytestmark = pytest.mark.usefixtures("one_thread")`."""
    with single_thread():
        yield


# --- checkpoints; tests copy what they change ---


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """The small model at toy size with all variants, in the folder layout of the package."""
    from helpers.checkpoints import write_small_checkpoint

    folder = made_once(tmp_path_factory, "package", lambda root: write_small_checkpoint(root / "weights" / "small"))
    return folder / "weights" / "small"


@pytest.fixture(scope="session")
def published_checkpoints(tmp_path_factory) -> Path:
    """A folder in the published layout with all three variants and their base model."""
    from helpers.checkpoints import MEMORY, change_config, write_checkpoint

    from worldstereo_ros.models import VARIANTS

    def make(root: Path) -> None:
        for index, variant in enumerate(VARIANTS):
            write_checkpoint(root, variant, encoders=index == 0)
        # One variant for each mode of the condition latents.
        change_config(root / MEMORY, latent_cond_mode="first_frame_only")

    return made_once(tmp_path_factory, "checkpoints", make)


@pytest.fixture(scope="session")
def published_pipelines(published_checkpoints) -> dict[str, Any]:
    """Pipelines by variant, loaded once, with four steps instead of forty."""
    from worldstereo_ros.models import VARIANTS
    from worldstereo_ros.pipelines.auto import load_pipeline

    pipelines: dict[str, Any] = {}
    for variant in VARIANTS:
        pipelines[variant] = load_pipeline(str(published_checkpoints), variant=variant)
        pipelines[variant].steps = 4
    return pipelines


# --- training with the smallest configuration ---


@pytest.fixture(scope="session")
def training_worlds(tmp_path_factory) -> Path:
    """A folder with all worlds of the configuration."""
    from helpers.training_runs import render_smoke_worlds

    with single_thread():
        return made_once(tmp_path_factory, "worlds", render_smoke_worlds)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, training_worlds) -> Path:
    """The folder of a training run of all stages; tests that change it use `trained_copy`."""
    from helpers.training_runs import train_all

    from worldstereo_ros.training.data import refiner_views

    with single_thread(), pytest.MonkeyPatch.context() as patch:
        for name, fewer in {"PROTOCOLS": ("single",), "RANDOM_SCENARIOS": 0, "EVERY": 12}.items():
            patch.setattr(refiner_views, name, fewer)  # a tenth of the views that a refiner needs
        return made_once(tmp_path_factory, "run", lambda root: train_all(root / "small", training_worlds)) / "small"


@pytest.fixture
def trained_copy(trained, tmp_path) -> Path:
    from helpers.training_runs import copy_tree

    folder = tmp_path / "run"
    copy_tree(trained, folder)
    return folder


# --- viewer ---


@pytest.fixture
def wall_views() -> list[Any]:
    """Four views on a path towards a wall."""
    from helpers.viewer import POSES, wall_view

    return [wall_view(pose, number=10 * i) for i, pose in enumerate(POSES)]


# --- panoramas ---


@pytest.fixture(scope="session")
def box() -> tuple[Any, Any]:
    """Colours and distances of a panorama inside a box."""
    from helpers.panoramas import box_panorama

    return box_panorama(128)


@pytest.fixture(scope="session")
def box_views(box) -> list[Any]:
    """Views of the box panorama that cover the sphere."""
    from helpers.panoramas import ROUND, all_round

    from worldstereo_ros.panorama.perspective_views import panorama_views

    return list(panorama_views(*box, camera=ROUND, panorama_from_camera=all_round(ROUND)))
