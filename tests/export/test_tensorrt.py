"""Engines are found by all that they depend on, never half written, and built again where they are damaged."""

import json
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from worldstereo_ros.export import engine_cache, tensorrt
from worldstereo_ros.export.engine_cache import EngineCache, EngineKey, InputProfile
from worldstereo_ros.export.onnx import ModelExportError
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
        {"inputs": (replace(LATENT, most=(2, 36, 21, 60, 96)),)},
        {"inputs": (replace(LATENT, name="volume"),)},
        {"precision": "fp16"},
        {"level": 5},
    ],
)
def test_whatever_an_engine_depends_on_makes_another(cache, change):
    other = replace(KEY, **change)
    cache.store(KEY, b"engine")
    assert other.digest != KEY.digest
    assert cache.load(other) is None
    assert cache.get(other, lambda: b"another") == b"another"
    assert cache.load(KEY) == b"engine"


def test_an_engine_is_built_once_for_equal_keys(cache):
    built = []

    def build():
        built.append(1)
        return bytes(range(256)) * 100

    equal = EngineKey("model", "NVIDIA H200", (9, 0), "10.9.0", (replace(LATENT),))
    assert cache.get(KEY, build) == cache.get(equal, build) == bytes(range(256)) * 100
    assert built == [1]
    cache.forget(KEY)
    cache.get(KEY, build)
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
def test_a_damaged_engine_is_built_again(cache, damage):
    path = cache.store(KEY, b"engine" * 50)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(KEY) is None
    assert not path.exists()
    assert cache.get(KEY, lambda: b"rebuilt") == b"rebuilt"
    assert cache.load(KEY) == b"rebuilt"


def test_an_engine_of_another_key_under_this_name_is_not_used(cache):
    other = replace(KEY, gpu="NVIDIA L4")
    cache.path(KEY).write_bytes(cache.store(other, b"for another GPU").read_bytes())
    assert cache.load(KEY) is None


def test_a_write_that_fails_leaves_no_half(cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_cache.os, "fsync", full)
    with pytest.raises(ModelExportError, match="No space left on device"):
        cache.store(KEY, b"engine")
    assert list(cache.folder.iterdir()) == []
    with pytest.raises(ModelExportError, match="empty"):
        cache.store(KEY, b"")


def test_a_build_that_fails_keeps_nothing_and_may_be_tried_again(cache):
    def fail():
        raise ModelExportError("The GPU is gone.")

    with pytest.raises(ModelExportError, match="gone"):
        cache.get(KEY, fail)
    assert cache.get(KEY, lambda: b"engine") == b"engine"


def test_two_that_ask_at_once_build_once(cache):
    started, go, built = threading.Barrier(2), threading.Event(), []

    def build():
        built.append(1)
        go.wait(5)
        return b"engine"

    results = []

    def ask():
        started.wait(5)
        results.append(EngineCache(cache.folder).get(KEY, build))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert results == [b"engine", b"engine"]
    assert built == [1]


def test_timings_belong_to_a_gpu_and_a_version(cache):
    assert cache.timing(KEY) == cache.timing(replace(KEY, model="other", precision="bf16"))
    assert cache.timing(KEY) != cache.timing(replace(KEY, tensorrt="11.0.0"))
    assert cache.timing(KEY) != cache.timing(replace(KEY, gpu="NVIDIA L4"))


def test_shapes_must_bound_each_other():
    assert InputProfile("x", (1, 2), (1, 4), (1, 8)).holds((1, 5))
    assert not InputProfile("x", (1, 2), (1, 4), (1, 8)).holds((2, 5))
    for least, best, most in (((1, 2), (1, 1), (1, 8)), ((1,), (1, 1), (1, 1)), ((0,), (1,), (1,))):
        with pytest.raises(ModelExportError, match="least <= best <= most"):
            InputProfile("x", least, best, most)


def test_a_machine_without_tensorrt_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ModelExportError, match="pip install tensorrt") as caught:
        load_tensorrt()
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(ModelExportError, match="version 10 or later"):
        load_tensorrt()


# --- the builder, against something that records what it is asked ---


class Recorder:
    """TensorRT's Python interface as far as the builder uses it."""

    def __init__(self, version="10.9.0", *, weak=True, error="", builds=True):
        self.__version__ = version
        self.calls, self.error, self.builds = [], error, builds
        self.Logger = lambda severity: "logger"
        self.Logger.WARNING = 1
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(FP16="FP16 flag", BF16="BF16 flag") if weak else SimpleNamespace()
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        names = ("latent", "volume")
        network = SimpleNamespace(num_inputs=2, get_input=lambda i: SimpleNamespace(name=names[i]))
        self.cache = SimpleNamespace(serialize=lambda: b"timings")
        config = SimpleNamespace(
            set_flag=lambda flag: self.calls.append(("flag", flag)),
            set_memory_pool_limit=lambda pool, size: self.calls.append((pool, size)),
            add_optimization_profile=lambda profile: 0,
            create_timing_cache=lambda known: self.calls.append(("timing", known)) or self.cache,
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
    """A file whose description says that it is plain ONNX; no ONNX package is needed."""
    description = {"part": "control", "attention": "standard", "weights": "abc"}
    monkeypatch.setattr(tensorrt, "read_description", lambda path: dict(description))
    return tmp_path / "control.onnx", description


SHAPES = (LATENT, InputProfile("volume", (1, 7, 1, 16, 16), (1, 7, 2, 16, 16), (1, 7, 4, 32, 32)))


def test_an_engine_is_built_for_the_shapes_and_in_the_type_of_the_file(model, tmp_path, monkeypatch):
    trt = Recorder()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    timing = tmp_path / "gpu.timing"
    timing.write_bytes(b"old timings")
    assert build_engine(model[0], SHAPES, timing=timing, workspace=1 << 30, level=4) == b"built"
    assert ("network", 2) in trt.calls
    assert not [call for call in trt.calls if call[0] == "flag"]
    assert [call for call in trt.calls if call[0] == "shape"] == [
        ("shape", one.name, one.least, one.best, one.most) for one in SHAPES
    ]
    assert ("workspace", 1 << 30) in trt.calls
    assert ("timing", b"old timings") in trt.calls
    assert timing.read_bytes() == b"timings"
    assert trt.config.builder_optimization_level == 4


def test_half_precision_by_a_flag_only_where_there_is_one(model, monkeypatch):
    trt = Recorder()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    build_engine(model[0], SHAPES, precision="bf16")
    assert ("flag", "BF16 flag") in trt.calls
    assert ("network", 0) in trt.calls
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder("11.0.0", weak=False))
    with pytest.raises(ModelExportError, match="--dtype float16"):
        build_engine(model[0], SHAPES, precision="fp16")
    assert build_engine(model[0], SHAPES) == b"built"


def test_what_tensorrt_says_is_passed_on(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder(error="no importer for operator Foo"))
    with pytest.raises(ModelExportError, match="no importer for operator Foo"):
        build_engine(model[0], SHAPES)
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder(builds=False))
    with pytest.raises(ModelExportError, match="could not build"):
        build_engine(model[0], SHAPES)
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder())
    with pytest.raises(ModelExportError, match=r"has the inputs \['latent', 'volume'\]"):
        build_engine(model[0], SHAPES[:1])
    model[1]["attention"] = "fused"
    with pytest.raises(ModelExportError, match="--attention standard"):
        build_engine(model[0], SHAPES)


def test_the_key_follows_the_file(model):
    given = {"tensorrt_version": "10.9.0", "gpu": "NVIDIA H200", "capability": (9, 0)}
    key = engine_key(model[0], SHAPES, **given)
    assert json.loads(key.to_json())["inputs"][1]["best"] == [1, 7, 2, 16, 16]
    assert engine_key(model[0], SHAPES, **given) == key
    model[1]["weights"] = "abd"
    assert engine_key(model[0], SHAPES, **given).digest != key.digest
    with pytest.raises(ModelExportError, match="int4"):
        engine_key(model[0], SHAPES, precision="int4", **given)


def test_engines_run_on_gpus_alone(model, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder())
    with pytest.raises(ModelExportError, match="choose device cuda"):
        TensorRTRunner(model[0], cache, torch.device("cpu"))
