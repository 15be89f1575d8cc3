"""What tests of this room share."""

from onnxprune.runtime.ports import input_specs
from onnxprune.samples.calibration import open_calibration
from onnxprune.samples.partition import Partition


def parted(model, learn, judge=None):
    """A partition by hand: samples to learn from, and to judge by where those are others."""
    parts = [open_calibration(feeds, input_specs(model)) for feeds in (learn, learn if judge is None else judge)]
    return Partition(parts[0], parts[0], parts[1], parts[1])
