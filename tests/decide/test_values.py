"""Channels by what they hold."""

import numpy as np

from onnxprune.decide.values import classes


def test_classes_group_what_is_close():
    rows = np.array([[1.0, 2.0], [1.0, 2.0 + 5e-7], [1.0, 2.1], [1.0, 2.0]])
    label = classes(np.array([[0], [0], [0], [1]]), rows)
    assert label[0] == label[1] and len(set(label.tolist())) == 3
