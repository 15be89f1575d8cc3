"""Parts of the samples in batches: how many, how large, and what progress is told."""

import numpy as np
import pytest

from onnxprune.runtime.ports import InputSpec
from onnxprune.samples.calibration import open_calibration
from onnxprune.samples.partition import counted, first_batches


def samples(count, batch="n"):
    numbers = np.arange(count, dtype=np.float32).reshape(-1, 1)
    return open_calibration({"x": numbers}, [InputSpec("x", np.dtype(np.float32), (batch, 1))])


@pytest.mark.parametrize(
    ("there", "batch", "count", "sizes"),
    [
        (100, "n", 64, [32, 32]),
        (100, "n", 40, [32, 32]),  # whole batches: the last goes beyond
        (100, "n", 5, [5]),
        (20, "n", 64, [20]),
        (100, 8, 20, [8, 8, 8]),  # a model that fixes its batch
        (100, 8, 3, [8]),
    ],
)
def test_the_first_batches(there, batch, count, sizes):
    found = [feeds["x"].ravel() for feeds in first_batches(samples(there, batch), count)]
    assert [len(numbers) for numbers in found] == sizes
    assert np.concatenate(found).tolist() == list(range(sum(sizes)))


def test_progress_is_told_behind_every_batch():
    told = []
    for k, feeds in enumerate(counted(samples(70), 32, lambda *done: told.append(done))):
        assert len(told) == k and len(feeds["x"]) <= 32
    assert told == [(32, 70), (64, 70), (70, 70)]
    assert sum(len(feeds["x"]) for feeds in counted(samples(70), 50, None)) == 70
