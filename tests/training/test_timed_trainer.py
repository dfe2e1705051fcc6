"""What a training within a time budget leaves when it is interrupted."""

import time

import pytest
import torch
from torch import nn

from worldstereo_ros.training.pointmap_settings import PointmapTraining
from worldstereo_ros.training.timed_trainer import TimedTrainer


class Trainer(TimedTrainer):
    def save(self):
        self.saved_at = self.steps


class Feed:
    batch = 1

    def poll(self):
        pass

    def walks(self):
        return 1


@pytest.fixture
def trainer(tmp_path):
    device = torch.device("cpu")
    return Trainer(PointmapTraining(), tmp_path, time.monotonic(), device, {"part": nn.Linear(2, 2)}, Feed())


@pytest.mark.parametrize("steps", [0, 7])
def test_an_interrupt_saves_what_was_trained_and_closes_the_feed(trainer, steps, capsys):
    trainer.steps, closed = steps, []
    with pytest.raises(KeyboardInterrupt), trainer.saving(lambda: closed.append(True)):
        raise KeyboardInterrupt
    assert closed == [True]
    assert getattr(trainer, "saved_at", None) == (steps or None)
    assert (f"step {steps}" in capsys.readouterr().out) == bool(steps)


def test_an_error_closes_the_feed_and_saves_nothing(trainer):
    trainer.steps, closed = 7, []
    with pytest.raises(ValueError, match="broken"), trainer.saving(lambda: closed.append(True)):
        raise ValueError("broken")
    assert closed == [True]
    assert not hasattr(trainer, "saved_at")
    with trainer.saving():
        pass
    assert not hasattr(trainer, "saved_at")
