"""Lossless cuts on every row of the rule table: channels are made alike, dead or lookalikes in every group.

Whatever is found must be exact without the check that catches wrong proofs: that net is for rounding, not for us.
"""

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.decide.redundancy import find_lossless
from onnxprune.measure.surgery import check_equal
from onnxprune.pipeline.lossless import probing
from tests.channels import surgery
from tests.channels.test_rules import ROWS
from tests.rewrite.steps import apply_lossless


def tampered(case, how: str):
    """The row's model with channel 1 of every group made like channel 0, or zero, in all that makes it."""
    model = surgery.model_of(case.text, case.opset)
    _, channels = surgery.find(model)
    values = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    factor = {"equal": 1.0, "double": 2.0, "negative": -1.0, "zero": 0.0}
    for g in channels.groups:
        for s in (*g.slices,) if g.width > 1 else ():
            if s.role not in ("writes", "within") or s.tensor not in values or values[s.tensor].dtype.kind != "f":
                continue
            rows = np.moveaxis(values[s.tensor], s.axis, 0)
            first, second = np.flatnonzero(s.channel == 0), np.flatnonzero(s.channel == 1)
            if how == "rows of makers":
                if s.role == "writes" and len(first) == len(second):
                    rows[second] = rows[first]
            elif len(first) == len(second):
                rows[second] = factor[how] * rows[first]
    for t in model.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(values[t.name], t.name))
    return model


@pytest.mark.parametrize("how", ["equal", "double", "negative", "zero", "rows of makers"])
@pytest.mark.parametrize("case", surgery.rows(ROWS))
def test_what_is_found_is_exact(case, how):
    model = tampered(case, how)
    feeds = surgery.feeds_of(model)
    try:
        sound = all(np.isfinite(o).all() for o in surgery.run(model, feeds) if o.dtype.kind == "f")
    except Exception:
        sound = False
    if not sound:
        pytest.skip("the tampered model does not compute")
    graph, channels = surgery.find(model)
    found = find_lossless(graph, channels)
    if found.keep:
        outcome = check_equal(model, apply_lossless(graph, channels, found), [feeds, *probing(feeds)])
        assert outcome.exact, f"off by {outcome.worst:.1e}: {found}"
