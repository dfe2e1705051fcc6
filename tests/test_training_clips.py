"""Batches to train on, from other processes and more than once."""

import dataclasses

import numpy as np
import pytest
import torch
from training_runs import SMOKE, toy_stage

from worldstereo_ros.training.clips import Shelf
from worldstereo_ros.training.loading import ClipDraw, LoadedFeed

pytestmark = pytest.mark.usefixtures("one_thread")


def test_packed_clips_are_the_same_to_what_cameras_resolve(training_worlds):
    draw = ClipDraw(2, 5, renders=True, memory=True)
    random = np.random.default_rng(1)
    batches = [draw(Shelf(training_worlds, "training", 4), random, torch.device("cpu")) for _ in range(3)]
    assert any(batch.references.shape[2] for batch in batches)
    for batch in batches:
        packed = {name: torch.from_numpy(array) for name, array in draw.pack(batch).items()}
        back = draw.unpack(packed)
        for field in dataclasses.fields(batch):
            before, after = getattr(batch, field.name), getattr(back, field.name)
            assert before.shape == after.shape
            assert torch.allclose(before.float(), after.float(), rtol=1e-3, atol=0.5 / 127.5 + 1e-5)


def test_loaders_give_the_same_batches_every_time_and_say_what_failed(training_worlds, tmp_path):
    shelf, device = Shelf(training_worlds, "training", 4), torch.device("cpu")
    draw = ClipDraw(2, 5, renders=False, memory=False)
    taken = []
    for _ in range(2):
        feed = LoadedFeed(draw, shelf, [0, 1, 0], device, 1)
        try:
            taken.append([feed.take().pictures for _ in range(2)])
        finally:
            feed.close()
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))
    assert not torch.equal(taken[0][0], taken[0][1])
    shelf.folder = tmp_path
    feed = LoadedFeed(draw, shelf, [0, 1, 0], device, 1)
    try:
        with pytest.raises(RuntimeError, match="no training worlds in"):
            feed.take()
    finally:
        feed.close()


def test_batches_are_learnt_from_again_while_no_new_one_is_ready(trained, training_worlds):
    stage = toy_stage(trained, training_worlds, "video")
    settings = dataclasses.replace(stage.run.settings, worlds=dataclasses.replace(SMOKE.worlds, loaders=1, replay=2))
    stage.run.settings = settings
    stage._replay = type(stage._replay)(maxlen=2)
    waited, take = [], stage._feed.take

    def rarely(*, wait=True):
        waited.append(wait)
        return take() if wait else None

    stage._feed.take = rarely
    seen = []
    for _ in range(8):
        stage.start_step()
        seen.append(stage._clips)
    assert waited == [True, True] + [False] * 6
    assert {id(clips) for clips in seen[2:]} == {id(clips) for clips in seen[:2]}
