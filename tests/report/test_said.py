"""What the terminal says of a result, its page says too, in the same words."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest

from onnxprune import api
from onnxprune.channels import Pinned
from onnxprune.measure.agreement import PartFidelity
from onnxprune.measure.cost import Kind
from onnxprune.measure.fidelity import Fidelity
from onnxprune.measure.surgery import Surgery
from onnxprune.plan import DropBlock, Factorize
from onnxprune.report.provenance import Provenance
from onnxprune.report.refused import Refused
from onnxprune.report.terminal import summary
from tests.channels import surgery

TEXT = """(float[N,3,6,6] x) => (float[N,4] y) <float[8,3,3,3] w, float[8,8,1,1] u, float[4,8] v>
    { h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) i = Conv(r, u) p = GlobalAveragePool(i) f = Flatten(p) y = Gemm<transB=1>(f, v) }"""


@pytest.fixture(scope="module")
def result():
    x = np.random.default_rng(0).standard_normal((16, 3, 6, 6)).astype(np.float32)
    return api.prune(surgery.model_of(TEXT), 0.5, calibration=x, round_to=1, bench=True)


def asked(result, **origin):
    return replace(result, plan=replace(result.plan, origin=replace(result.plan.origin, **origin)))


def variants(result):
    """Results of every kind."""
    yield "plain", result
    yield "untimed", replace(result, latency=None, before=replace(result.before, latency_ms=None))
    yield "no samples", replace(result, fidelity=None, warnings=("no calibration data",))
    found = Surgery(1e-3, 8, False, 1e-4, ("d<1>", "e"), ("y", "z"), ("l&m",), "masked original")
    yield "inner and turned", replace(result, surgery=found)
    yield "inexact", replace(result, surgery=replace(found, turned=(), inner=()), inexact=("n", "m"))
    yield "against the original", replace(result, surgery=Surgery(1e-7, 8, against="original"))
    yield "integers", replace(result, fidelity=Fidelity(3, None, None, None, held_out=False, equal=0.5))
    yield "all metrics", replace(result, fidelity=Fidelity(3, 0.9, 10.0, 0.25, equal=0.5))
    parts = (
        PartFidelity("y[:, <2]", "class scores", 0.9, 12.0, 0.8, 0.75, 0.5, 0.6, 2),
        PartFidelity("boxes", "values", 0.99, 20.0, 0.99), PartFidelity("labels", "integers", same=0.5, chance=0.1),
    )  # fmt: skip
    why = "y[:, <2]: top-1 agreement 75.0%, chance would give 50.0%"
    boxes = PartFidelity("y[:, 0:4]", "boxes", 0.99, 12.0, 0.9, figures={"box_f1": 0.971, "box_recall": 0.96},
                         beside="y[:, 4:9]")  # fmt: skip
    beside = PartFidelity("y[:, 4:9]", "box scores", 0.99, 12.0, 0.9)
    found = Fidelity(3, 0.9, 12.0, None, parts=(boxes, beside), verdict="kept", why="box F1 97.1%",
                     decides=("y[:, 0:4]", "box_f1"))  # fmt: skip
    yield "boxes", replace(result, fidelity=found)
    read = PartFidelity("y", "text", 0.9, 12.0, 0.8, 0.99, 0.5, 0.95, 9, {"words": 0.75, "characters": 0.9})
    yield "a text", replace(result, fidelity=Fidelity(3, 0.9, 12.0, 0.99, parts=(read,), verdict="changed",
                                                      why="words 75.0%", decides=("y", "words")))  # fmt: skip
    yield "destroyed", replace(result, fidelity=Fidelity(3, 0.9, 12.0, 0.75, True, 0.5, parts, "destroyed", why))
    cost = replace(result.before, uncounted=(Kind("x::Foo", 2, "unknown"), Kind("Bar", 1, "too")), uncounted_time=0.1)
    yield "not counted", replace(result, before=cost)
    yield "nothing to compare", replace(result, fidelity=Fidelity(3, None, None, None))
    yield "notes and warnings", replace(result, notes=("a metric 1 < 2", "b"), warnings=("x & y", "slow\x1b"))
    edits = (
        *(DropBlock(f"b{k}\n", 0, 1, 4, 8) for k in range(6)),
        *(Factorize(f"f{k}", "channel", 1) for k in range(7)),
    )
    yield "blocks and ranks", replace(result, plan=replace(result.plan, edits=edits))
    yield "kept whole", replace(result, pinned=tuple(Pinned("t", 0, k, f"why <{k % 4}>", "n") for k in range(9)))
    refused = tuple(Refused("refitted", f"n{k}", "it reads <itself>") for k in range(30))
    yield "refused", replace(result, refused=(*refused, Refused("split", "m", "no faster")))
    yield "speed-up", asked(result, target={"speedup": 2.0}, ratio=None, came_to=0.51)
    yield "a drop", asked(result, target={"max_drop": 1.0}, ratio=None, metric="top-1 of x.npz in percent")
    yield "lossless", asked(result, ratio=None, lossless=True)
    yield "trained", replace(asked(result, trained="csgd", steps=100), notes=("csgd, 100 steps",))
    yield "params", asked(result, settings={**result.plan.origin.settings, "of": "params"})
    earlier = ({"asked": "--ratio 0.3 of the MACs", "version": "0.1.0"}, {"version": "0.1.0"})
    yield "pruned before", replace(result, made=Provenance(earlier=earlier))
    yield "pruned once before", replace(result, made=Provenance(earlier=earlier[:1]))


NAMES = [
    "plain", "untimed", "no samples", "inner and turned", "inexact", "against the original", "integers", "all metrics",
    "boxes", "a text", "destroyed", "not counted", "nothing to compare", "notes and warnings", "blocks and ranks", "kept whole", "refused",
    "speed-up", "a drop",
    "lossless", "trained", "params", "pruned before", "pruned once before",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_terminal_says(result, name):
    shown = dict(variants(result))[name]
    page = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown.to_html().split("</style>")[1])).split())
    lines = [line for line in summary(shown, verbose=True, width=10_000).splitlines() if line.strip()]
    assert len(lines) > 7
    for line in lines:
        about, *cells = re.split(r"  +", line.strip())
        if line.startswith(" "):  # the heading
            cells = [about, *cells]
        for words in cells if len(cells) > 1 or about == "file size" else [" ".join(line[13:].split())]:
            assert words in page, words


def test_every_kind_is_tried(result):
    assert [name for name, _ in variants(result)] == NAMES
    said = {
        line[:13].strip() for _, r in variants(result) for line in summary(r, verbose=True, width=10_000).splitlines()
    }
    assert {"asked", "before", "speed-up", "surgery", "fidelity", "groups", "blocks", "low rank", "measured", "trained",
            "kept whole", "not refitted", "not split", "verdict", "not counted", "", "warning", "MACs", "latency p50"} <= said  # fmt: skip
