"""Plans travel to twins: the same structure, other weights, other names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import cli
from onnxprune.channels.structure import structure_of
from onnxprune.errors import PlanError
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import DropBlock, Factorize, KeepChannels, PrunePlan
from onnxprune.runtime import convert
from tests.test_benchmarks import RESNET, calibration

QUICK = Settings(allocation="uniform", criterion="l1", repair="statistics")


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """With other names for all but inputs and outputs, and the nodes' own."""
    ports = {v.name for v in (*model.graph.input, *model.graph.output)}

    def other(name: str) -> str:
        return name if not name or name in ports else f"twin/{name[::-1]}"

    for node in model.graph.node:
        node.input[:] = map(other, node.input)
        node.output[:] = map(other, node.output)
        node.name = ""
    for tensor in model.graph.initializer:
        tensor.name = other(tensor.name)
    del model.graph.value_info[:]
    return model


def retrained(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """With somewhat other weights."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            value = numpy_helper.to_array(tensor)
            moved = value + 0.2 * value.std() * rng.standard_normal(value.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return model


def opened(model):
    return onnxprune.open_model(model, calibration=calibration(48), trusted=True)


@pytest.fixture(scope="module")
def plan():
    subject = opened(str(RESNET))
    found = onnxprune.make_plan(subject, 0.4, QUICK)
    name = next(g.name for g in subject.channels.groups)
    edits = (
        *found.edits,
        DropBlock("/3/Add_output_0", 0, 1, 4, 16),
        Factorize("/6/b/b.0/Conv_output_0", "channel", 12),
    )
    assert any(isinstance(e, KeepChannels) and e.group == name for e in edits)
    own = {name for name in structure_of(subject.net).places}
    assert {"/3/Add_output_0", "/6/b/b.0/Conv_output_0"} <= own
    from onnxprune.pipeline.transfer import with_structure

    blocks = [e.as_removed() for e in edits if isinstance(e, DropBlock)]
    assert blocks
    return PrunePlan.from_json(with_structure(replace(found, edits=edits), subject).to_json())


def widths(plan: PrunePlan) -> list[tuple[int, int]]:
    return sorted((e.width, len(e.keep)) for e in plan.narrowed())


def test_other_names_and_the_same_weights_keep_the_same_channels(plan):
    twin = opened(renamed(onnx.load(RESNET)))
    found = onnxprune.transfer(plan, twin, QUICK)
    assert [e.keep for e in found.narrowed()] == [e.keep for e in plan.narrowed()]
    assert found.model_digest == twin.digest
    assert found.origin.made_for == plan.model_digest
    before, after = (onnxprune.apply_plan(s, p, QUICK) for s, p in ((opened(str(RESNET)), plan), (twin, found)))
    assert after.after.macs == before.after.macs
    feeds = {"x": calibration(4)}
    from onnxprune.runtime.sessions import open_session

    want, got = (open_session(r.model).run(feeds)[0] for r in (before, after))
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("make", [retrained, lambda m: renamed(retrained(m)), lambda m: renamed(convert.joined(m))])
def test_widths_blocks_and_ranks_travel(plan, make):
    twin = opened(make(onnx.load(RESNET)))
    found = onnxprune.transfer(plan, twin, QUICK)
    assert widths(found) == widths(plan)
    assert len(found.drops()) == 1
    assert len(found.factorized()) == 1
    result = onnxprune.apply_plan(twin, found, QUICK)
    assert result.surgery.exact
    again = onnxprune.transfer(found, opened(str(RESNET)), QUICK)  # and back
    assert widths(again) == widths(plan)
    assert again.drops() == plan.drops()


def test_channels_are_chosen_by_what_they_are_worth_in_the_twin(plan):
    """Channels in another order, as if trained from another seed: other numbers stay."""
    model = onnx.load(RESNET)
    twin = opened(retrained(model, seed=3))
    found = onnxprune.transfer(plan, twin, QUICK)
    own = {name: keep for name, keep in found.keep().items()}
    assert any(own[name] != keep for name, keep in plan.keep().items())


def test_a_model_that_is_no_twin_is_refused_with_what_differs(plan):
    model = onnx.load(RESNET)
    (tail,) = [n for n in model.graph.node if n.op_type == "Gemm"]
    for name, shape in ((tail.input[1], (12, 64)), (tail.input[2], (12,))):
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12
    with pytest.raises(PlanError, match=r"no twin.*lacks matrix 10x64.*has matrix 12x64"):
        onnxprune.transfer(plan, opened(model), QUICK)


def test_a_plan_that_knows_no_structure_goes_by_names(plan):
    bare = replace(plan, structure={})
    assert widths(onnxprune.transfer(bare, opened(retrained(onnx.load(RESNET))), QUICK)) == widths(plan)
    with pytest.raises(PlanError, match=r"nothing that stands where|no group of channels like"):
        onnxprune.transfer(bare, opened(renamed(onnx.load(RESNET))), QUICK)


def test_what_hangs_on_the_weights_does_not_travel(plan):
    with pytest.raises(PlanError, match="lossless"):
        onnxprune.transfer(replace(plan, lossless=True), opened(retrained(onnx.load(RESNET))))


def test_its_own_model_gets_the_plan_itself(plan):
    assert onnxprune.transfer(plan, opened(str(RESNET))) is plan


def test_the_command_line(plan, tmp_path, capsys):
    onnx.save(renamed(retrained(onnx.load(RESNET))), twin := str(tmp_path / "twin.onnx"))
    np.savez(tmp_path / "x.npz", x=calibration(48))
    path = plan.save(tmp_path / "plan.json")
    words = [twin, str(path), "--calib", str(tmp_path / "x.npz"), "--repair", "statistics", "--allow-destroyed"]
    words += ["--no-bench", "-o", out] if (out := str(tmp_path / "out.onnx")) else []
    assert cli.main(["apply", *words]) == 2
    assert "another model" in capsys.readouterr().err
    assert cli.main(["apply", *words, "--transfer", "--plan-out", str(tmp_path / "own.json")]) == 0
    capsys.readouterr()
    assert cli.main(["verify", twin, out, "--plan", str(tmp_path / "own.json")]) == 0
    assert "as planned" in capsys.readouterr().out
