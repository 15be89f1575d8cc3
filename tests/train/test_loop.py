"""The loop: a run that was killed ends as one that was not; several processes learn as one; metrics and checkpoints."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from onnxprune.errors import UsageError  # noqa: E402
from onnxprune.train.loop import Training, rate, train  # noqa: E402

HOW = Training(steps=30, lr=0.05, warmup=3, check_every=10, save_every=0.0, bf16=False)


def run(training, stop_at=None, **more):
    """Fit a line to noise that the step decides. Returns (weights, summary)."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)

    def loss(step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (net(x) - x.sum(1, keepdim=True)).square().mean(), {}

    return net, train(net, loss, training, **more)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop_at", [1, 17])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, stop_at, optimizer):
    how = replace(HOW, optimizer=optimizer)
    whole, _ = run(how)
    resumable = replace(how, checkpoint=tmp_path / "run.pt")
    with pytest.raises(KeyboardInterrupt):
        run(resumable, stop_at=stop_at)
    again, summary = run(resumable)
    assert summary["resumed_at"] == stop_at
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.slow
def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL at a random moment of a process that does nothing but save."""
    path = tmp_path / "run.pt"
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from tests.train.test_loop import HOW, run\n"
        "run(replace(HOW, steps=10**6, check_every=10**9, checkpoint=Path(sys.argv[1])))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(path), os.getcwd()])
    try:
        while not path.exists():
            assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert torch.load(path, weights_only=True)["step"] >= 1


def test_another_run_s_checkpoint_is_refused(tmp_path):
    how = replace(HOW, checkpoint=tmp_path / "run.pt")
    run(how)
    with pytest.raises(UsageError, match="another run"):
        run(replace(how, lr=1.0))
    (tmp_path / "run.pt").write_bytes(b"no")
    with pytest.raises(UsageError, match="not a checkpoint"):
        run(how)


def test_metrics_are_lines_of_json_and_the_best_is_kept(tmp_path):
    merits = iter([3.0, 1.0, 2.0])
    seen = []

    def check():
        seen.append({k: v.clone() for k, v in net_holder[0].state_dict().items()})
        return next(merits)

    torch.manual_seed(0)
    net = torch.nn.Linear(2, 1)
    net_holder = [net]
    training = replace(HOW, metrics=tmp_path / "m.jsonl")
    summary = train(net, lambda step: (net(torch.ones(1, 2)).square().sum(), {"a": 1.0}), training, check=check)
    lines = [json.loads(line) for line in Path(training.metrics).read_text().splitlines()]
    assert [(r["step"], r["held_out"], r["a"]) for r in lines] == [(10, 3.0, 1.0), (20, 1.0, 1.0), (30, 2.0, 1.0)]
    assert (summary["best"], summary["best_step"]) == (1.0, 20)
    assert torch.equal(net.weight, seen[1]["weight"])


def test_patience_ends_a_run():
    looks = []
    run(replace(HOW, steps=1000, patience=2), check=lambda: looks.append(1) or float(len(looks)))
    assert len(looks) == 3


def test_the_rate_rises_and_falls():
    rates = [rate(step, HOW) for step in range(HOW.steps)]
    assert rates[0] < rates[2] == max(rates) <= HOW.lr and rates[-1] < 0.01 * HOW.lr


WORKER = """
import os, sys; sys.path.insert(0, sys.argv[2])
import torch
from onnxprune.train.loop import Training, process_group, rank, ranks, train
from onnxprune.train.samples import Samples
import numpy as np
x = np.random.default_rng(0).standard_normal((32, 3)).astype("float32")
samples = Samples([{"x": x}], 8)
torch.manual_seed(0)
net = torch.nn.Linear(3, 1)
def loss(step):
    part = torch.from_numpy(samples.batch(step, 0, rank(), ranks())["x"])
    return (net(part) - part.sum(1, keepdim=True)).square().mean(), {}
with process_group():
    train(net, loss, Training(steps=10, lr=0.05, warmup=1, check_every=10**9, bf16=False))
    if rank() == 0:
        torch.save((net.weight.detach(), ranks()), sys.argv[1])
os._exit(0)  # as `__main__` does: gloo's threads may abort a process that unloads
"""


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    out = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        path = tmp_path / f"{len(out)}.pt"
        subprocess.run([sys.executable, *launcher, str(script), str(path), os.getcwd()], check=True, timeout=240)
        out.append(torch.load(path, weights_only=True))
    assert [n for _, n in out] == [1, 2]
    assert torch.allclose(out[0][0], out[1][0], atol=1e-6)
