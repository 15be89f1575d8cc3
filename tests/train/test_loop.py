"""The loop: a run that was killed ends as one that was not; several processes learn as one; metrics and checkpoints."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from onnxprune.errors import FileError, UsageError  # noqa: E402
from onnxprune.files.lines import add_line, check_lines  # noqa: E402
from onnxprune.pipeline.training_settings import LINE  # noqa: E402
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
from onnxprune.train.loop import Training, train
from onnxprune.train.processes import process_group, rank, ranks
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


# ---- files that are not ours ------------------------------------------------------------------------------


def wrong(edit):
    """The content of a checkpoint of the right run, changed."""

    def change(path):
        content = torch.load(path, weights_only=True)
        other = edit(content)
        torch.save(content if other is None else other, path)

    return change


def flipped(path):
    data = bytearray(path.read_bytes())
    at = data.index(torch.load(path, weights_only=True)["network"]["weight"].numpy().tobytes())
    data[at + 1] ^= 64
    path.write_bytes(data)


WRONG = {
    "no step": wrong(lambda c: c.pop("step") and None),
    "a step too far": wrong(lambda c: c.update(step=10**9)),
    "a step that is text": wrong(lambda c: c.update(step="17")),
    "no network": wrong(lambda c: c.update(network={})),
    "a network of another shape": wrong(lambda c: c["network"].update(weight=torch.zeros(5))),
    "a network of NaN": wrong(lambda c: c["network"].update(weight=torch.full((1, 3), torch.nan))),
    "no state of the optimizer": wrong(lambda c: c["optimizer"].update(state={})),
    "an optimizer of other groups": wrong(lambda c: c["optimizer"]["param_groups"].pop() and None),
    "a best that is none": wrong(lambda c: c.update(best=None)),
    "kept of another shape": wrong(lambda c: c.update(kept={"weight": torch.zeros(5)})),
    "no rate": wrong(lambda c: c["held"].update(lr=float("nan"))),
    "memory of another method": wrong(lambda c: c.update(memory={"masks": 1})),
    "a list": wrong(lambda c: [1, 2]),
    "a bit": flipped,
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-200]),
}


@pytest.mark.parametrize("way", WRONG)
def test_a_checkpoint_of_the_right_run_with_wrong_contents(tmp_path, way):
    how = replace(HOW, checkpoint=tmp_path / "run.pt")
    with pytest.raises(KeyboardInterrupt):
        run(how, stop_at=17)
    WRONG[way](tmp_path / "run.pt")
    with pytest.raises(UsageError, match=r"run.pt: .*(damaged|not a checkpoint)"):
        run(how)


def full(limit):
    """No file of this process may be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_a_full_disk(tmp_path, what):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "file"
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    for limit in (0, 10, 100, 1000):
        path.unlink(missing_ok=True)
        try:
            full(limit)
            with pytest.raises(FileError, match=r"file: cannot be written: .*free some space") as found:
                run(replace(HOW, steps=30 if limit < 100 else 300, check_every=1, **{what: path}))
            assert found.value.exit_code == 7
        finally:
            full(most)
        lines = path.read_bytes() if path.exists() else b""
        assert not lines or (what == "metrics" and lines.endswith(b"}\n"))
        assert {p.name for p in tmp_path.iterdir()} <= {"file"}


def test_a_checkpoint_goes_through_no_link_and_keeps_its_permissions(tmp_path):
    path, precious = tmp_path / "run.pt", tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f".run.pt.{os.getpid()}.part").symlink_to(precious)
    with pytest.raises(KeyboardInterrupt):
        run(replace(HOW, checkpoint=path), stop_at=3)
    path.chmod(0o600)
    run(replace(HOW, checkpoint=path))
    assert path.stat().st_mode & 0o777 == 0o600 and precious.read_text() == "mine"


OURS = '{"step": 100, "loss": 1.0, "held_out": null, "seconds": 0.1}\n'
LINES = {
    "nothing": ("", True),
    "ours": (OURS, True),
    "ours and more": (OURS * 5000, True),
    "a model": ("\x08\x07\x12\x04here", False),
    "notes": ("notes\n", False),
    "other json": ('{"a": 1}\n', False),
    "no object": ("[1, 2]\n", False),
    "notes behind ours": (OURS + "notes\n", False),
    "ours behind notes": ("notes\n" + OURS, False),
    "half a line": (OURS + OURS[:20], False),
    "deep": ("[" * 60000 + "\n", False),
}


@pytest.mark.parametrize("way", LINES)
def test_lines_are_added_to_files_of_ours_alone(tmp_path, way):
    path, (text, fine) = tmp_path / "m.jsonl", LINES[way]
    path.write_text(text)
    if fine:
        check_lines(path, LINE)
        add_line(path, {"step": 1})
        assert path.read_text() == text + '{"step": 1}\n'
        return
    with pytest.raises(FileError, match=r"m\.jsonl: holds something else"):
        check_lines(path, LINE)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link to nothing", "a link to a pipe"])
def test_lines_are_added_to_regular_files_alone(tmp_path, kind):
    path = tmp_path / "m.jsonl"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("there")
        if kind == "a link to a pipe":
            os.mkfifo(tmp_path / "there")
    before = sorted(p.name for p in tmp_path.iterdir())
    for call in (lambda: check_lines(path, LINE), lambda: add_line(path, {"step": 1})):
        with pytest.raises(FileError, match=r"m\.jsonl"):
            call()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
