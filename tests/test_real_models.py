"""Files that users run, where they are at hand (`../shared/models` beside the checkout): half of each goes, exactly,
also at a size that the analysis has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune import api
from onnxprune.channels import CutSizes, removed_cuts
from onnxprune.measure.surgery import check_surgery
from onnxprune.pipeline.inspection import inspection
from onnxprune.runtime import ports
from tests.channels import surgery
from tests.rewrite.steps import cut

FOLDER = Path(__file__).parents[2] / "shared" / "models"
FILES = [
    ("efficientnet_lite0.onnx", None, None),
    ("ch_PP-OCRv4_det_infer.onnx", None, (2, 3, 160, 96)),
    ("ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 320), (3, 3, 48, 192)),
    ("ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192), (2, 3, 48, 100)),
]


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/models")
@pytest.mark.parametrize(("file", "size"), [f[:2] for f in FILES], ids=[f[0] for f in FILES])
def test_every_channel_that_stays_has_its_reason(file: str, size: tuple[int, ...] | None) -> None:
    subject = api.open_model(FOLDER / file, input_shapes={"x": size} if size else None)
    surgery.assert_explained(subject.graph, subject.channels)
    assert sum(g.width for g in subject.channels.groups) == subject.channels.unit_count
    told = inspection(subject)["pinned"]
    assert sum(p["channels"] for p in told) == sum(p.count for p in subject.channels.pinned)
    assert all(where["node"] and where["tensor"] and p["reason"] for p in told for where in p["where"])


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/models")
@pytest.mark.parametrize(("file", "size", "other"), FILES, ids=[f[0] for f in FILES])
def test_half_goes_exactly(file: str, size: tuple[int, ...] | None, other: tuple[int, ...] | None) -> None:
    subject = api.open_model(FOLDER / file, input_shapes={"x": size} if size else None)
    result = api.plan_and_apply(subject, api.Ratio(0.5))
    assert result.surgery.exact and abs(result.macs_removed - 0.5) < 0.05
    if other is None:
        return
    alive = subject.channels.alive(result.plan.keep())
    pruned = cut(subject.graph, subject.channels, alive)
    feeds = ports.default_feed(ports.input_specs(subject.model), shapes={"x": other})
    cuts, kept = removed_cuts(subject.graph, subject.channels, alive), CutSizes(subject.channels, alive).kept()
    assert check_surgery(subject.model, pruned, cuts, [feeds], kept=kept).exact
