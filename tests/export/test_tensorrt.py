"""The engine cache (keys, atomic writes, damaged files) and the calls of TensorRT's builder."""

import json
import os
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from worldstereo_ros.export import tensorrt
from worldstereo_ros.export.engine_cache import EngineCache, EngineKey, InputProfile
from worldstereo_ros.export.errors import ModelExportError
from worldstereo_ros.export.tensorrt import TensorRTRunner, build_engine, engine_key, load_tensorrt

LATENT = InputProfile("latent", (1, 36, 21, 60, 96), (1, 36, 21, 60, 96), (1, 36, 21, 60, 96))
KEY = EngineKey("model", "NVIDIA H200", (9, 0), "10.9.0", (LATENT,))


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "new" / "engines")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"gpu": "NVIDIA L4"},
        {"capability": (8, 9)},
        {"tensorrt": "10.9.1"},
        {"inputs": (replace(LATENT, max=(2, 36, 21, 60, 96)),)},
        {"inputs": (replace(LATENT, name="volume"),)},
        {"precision": "fp16"},
        {"optimization_level": 5},
    ],
)
def test_key_depends_on_everything_an_engine_depends_on(cache, change):
    other = replace(KEY, **change)
    cache.store(KEY, b"engine")
    assert other.digest != KEY.digest
    assert cache.load(other) is None
    assert cache.get_or_build(other, lambda: b"another") == b"another"
    assert cache.load(KEY) == b"engine"


def test_get_or_build_builds_once_for_equal_keys(cache):
    built = []

    def build():
        built.append(1)
        return bytes(range(256)) * 100

    equal = EngineKey("model", "NVIDIA H200", (9, 0), "10.9.0", (replace(LATENT),))
    assert cache.get_or_build(KEY, build) == cache.get_or_build(equal, build) == bytes(range(256)) * 100
    assert built == [1]
    cache.remove(KEY)
    cache.get_or_build(KEY, build)
    assert built == [1, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:11],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        lambda content: b"PICKLE!!" + content[8:],
        lambda content: content[:8] + b"\xff\xff\xff\xff" + content[12:],
        lambda content: content[:12] + b"[" + content[13:],
        lambda content: content.replace(b"H200", b"H100"),
    ],
)
def test_damaged_engine_is_built_again(cache, damage):
    path = cache.store(KEY, b"engine" * 50)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(KEY) is None
    assert not path.exists()
    assert cache.get_or_build(KEY, lambda: b"rebuilt") == b"rebuilt"
    assert cache.load(KEY) == b"rebuilt"


def test_engine_of_another_key_under_this_name_is_not_used(cache):
    other = replace(KEY, gpu="NVIDIA L4")
    cache.path(KEY).write_bytes(cache.store(other, b"for another GPU").read_bytes())
    assert cache.load(KEY) is None


def test_failed_write_leaves_no_file(cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelExportError, match="No space left on device"):
        cache.store(KEY, b"engine")
    assert list(cache.folder.iterdir()) == []
    with pytest.raises(ModelExportError, match="empty"):
        cache.store(KEY, b"")


def test_failed_build_stores_nothing_and_can_be_repeated(cache):
    def fail():
        raise ModelExportError("The GPU was removed.")

    with pytest.raises(ModelExportError, match="removed"):
        cache.get_or_build(KEY, fail)
    assert cache.get_or_build(KEY, lambda: b"engine") == b"engine"


def test_concurrent_requests_build_once(cache):
    started, go, built = threading.Barrier(2), threading.Event(), []

    def build():
        built.append(1)
        go.wait(5)
        return b"engine"

    results = []

    def request():
        started.wait(5)
        results.append(EngineCache(cache.folder).get_or_build(KEY, build))

    threads = [threading.Thread(target=request) for _ in range(2)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert results == [b"engine", b"engine"]
    assert built == [1]


def test_timing_cache_depends_on_gpu_and_version(cache):
    assert cache.timing_cache_path(KEY) == cache.timing_cache_path(replace(KEY, model="other", precision="bf16"))
    assert cache.timing_cache_path(KEY) != cache.timing_cache_path(replace(KEY, tensorrt="11.0.0"))
    assert cache.timing_cache_path(KEY) != cache.timing_cache_path(replace(KEY, gpu="NVIDIA L4"))


def test_input_profile_needs_ordered_shapes():
    assert InputProfile("x", (1, 2), (1, 4), (1, 8)).contains((1, 5))
    assert not InputProfile("x", (1, 2), (1, 4), (1, 8)).contains((2, 5))
    for low, opt, high in (((1, 2), (1, 1), (1, 8)), ((1,), (1, 1), (1, 1)), ((0,), (1,), (1,))):
        with pytest.raises(ModelExportError, match="min <= opt <= max"):
            InputProfile("x", low, opt, high)


def test_missing_or_old_tensorrt_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ModelExportError, match="pip install tensorrt") as caught:
        load_tensorrt()
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(ModelExportError, match="version 10 or later"):
        load_tensorrt()


# --- the builder, with a fake TensorRT that records its calls ---


class FakeTensorRT:
    """The part of TensorRT's Python interface that `build_engine` uses."""

    def __init__(self, version="10.9.0", *, weakly_typed=True, error="", builds=True):
        self.__version__ = version
        self.calls, self.error, self.builds = [], error, builds
        self.Logger = lambda severity: "logger"
        self.Logger.WARNING = 1
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(FP16="FP16 flag", BF16="BF16 flag") if weakly_typed else SimpleNamespace()
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        names = ("latent", "volume")
        network = SimpleNamespace(num_inputs=2, get_input=lambda i: SimpleNamespace(name=names[i]))
        self.cache = SimpleNamespace(serialize=lambda: b"timings")
        config = SimpleNamespace(
            set_flag=lambda flag: self.calls.append(("flag", flag)),
            set_memory_pool_limit=lambda pool, size: self.calls.append((pool, size)),
            add_optimization_profile=lambda profile: 0,
            create_timing_cache=lambda content: self.calls.append(("timing", content)) or self.cache,
            set_timing_cache=lambda cache, ignore_mismatch: True,
        )
        profile = SimpleNamespace(set_shape=lambda *shape: self.calls.append(("shape", *shape)))

        def create_network(flags):
            self.calls.append(("network", flags))
            return network

        self.config = config
        self.Builder = lambda logger: SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, config: b"built" if self.builds else None,
        )
        self.OnnxParser = lambda network, logger: SimpleNamespace(
            parse_from_file=lambda path: not self.error, num_errors=1, get_error=lambda i: self.error
        )


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file whose metadata are those of plain ONNX; the package onnx is not needed."""
    metadata = {"part": "control", "attention": "standard", "weights": "abc"}
    monkeypatch.setattr(tensorrt, "read_metadata", lambda path: dict(metadata))
    return tmp_path / "control.onnx", metadata


SHAPES = (LATENT, InputProfile("volume", (1, 7, 1, 16, 16), (1, 7, 2, 16, 16), (1, 7, 4, 32, 32)))


def test_build_engine_with_shapes_and_dtype_of_the_file(model, tmp_path, monkeypatch):
    trt = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    timing = tmp_path / "gpu.timing"
    timing.write_bytes(b"old timings")
    assert (
        build_engine(model[0], SHAPES, timing_cache=timing, workspace_bytes=1 << 30, optimization_level=4) == b"built"
    )
    assert ("network", 2) in trt.calls
    assert not [call for call in trt.calls if call[0] == "flag"]
    assert [call for call in trt.calls if call[0] == "shape"] == [
        ("shape", one.name, one.min, one.opt, one.max) for one in SHAPES
    ]
    assert ("workspace", 1 << 30) in trt.calls
    assert ("timing", b"old timings") in trt.calls
    assert timing.read_bytes() == b"timings"
    assert trt.config.builder_optimization_level == 4


def test_half_precision_flag_needs_weakly_typed_networks(model, monkeypatch):
    trt = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    build_engine(model[0], SHAPES, precision="bf16")
    assert ("flag", "BF16 flag") in trt.calls
    assert ("network", 0) in trt.calls
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("11.0.0", weakly_typed=False))
    with pytest.raises(ModelExportError, match="--dtype float16"):
        build_engine(model[0], SHAPES, precision="fp16")
    assert build_engine(model[0], SHAPES) == b"built"


def test_errors_of_tensorrt_are_reported(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(error="no importer for operator Foo"))
    with pytest.raises(ModelExportError, match="no importer for operator Foo"):
        build_engine(model[0], SHAPES)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(builds=False))
    with pytest.raises(ModelExportError, match="could not build"):
        build_engine(model[0], SHAPES)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    with pytest.raises(ModelExportError, match=r"has the inputs \['latent', 'volume'\]"):
        build_engine(model[0], SHAPES[:1])
    model[1]["attention"] = "fused"
    with pytest.raises(ModelExportError, match="--attention standard"):
        build_engine(model[0], SHAPES)


def test_engine_key_depends_on_the_metadata(model):
    machine = {"tensorrt_version": "10.9.0", "gpu": "NVIDIA H200", "capability": (9, 0)}
    key = engine_key(model[0], SHAPES, **machine)
    assert json.loads(key.to_json())["inputs"][1]["opt"] == [1, 7, 2, 16, 16]
    assert engine_key(model[0], SHAPES, **machine) == key
    model[1]["weights"] = "abd"
    assert engine_key(model[0], SHAPES, **machine).digest != key.digest
    with pytest.raises(ModelExportError, match="int4"):
        engine_key(model[0], SHAPES, precision="int4", **machine)


def test_tensorrt_runner_needs_cuda(model, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    with pytest.raises(ModelExportError, match="choose device cuda"):
        TensorRTRunner(model[0], cache, torch.device("cpu"))
