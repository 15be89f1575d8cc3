"""Commands under which a call fails, a limit is met, or which are killed: nothing is lost, and the exit code is right.

    python -m tests.fuzz.faults --count 1500
    python -m tests.fuzz.faults --kills --count 300

Each try is a command in a folder of its own, in a copy of this process (or, one kill in eight, in a fresh one). Then
inputs are as they were, outputs are whole, as they were, or not there, nothing else is left, and what was said is one
line. A seed tries the same each time, but for when a signal comes.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import functools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx

from tests.fuzz import injected
from tests.fuzz.injected import Injector

ROOT = Path(__file__).parents[2]
HANG_S, HANGS = 120.0, "\nTraceback: it hangs\n"
TOLD = 25
"""Tries after which it is told what came of all so far: a run may be ended before its end."""
LIMITS = ("file size", "descriptors", "addresses")
"""Of the system's own, met for real."""
RIGHT = {"open": (0, 3, 4, 7), "read": (0, 3, 4, 7), "stat": (0, 3, 4, 7), "write": (0, 4, 7), "fsync": (0, 7),
         "replace": (0, 7), "link": (0, 7), "chmod": (0, 7), "unlink": (0, 7)}  # fmt: skip
"""Site -> exit codes that are right there; elsewhere those of a model, samples or files."""
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
QUIET = ("--calib", "s.npz", "--no-bench", "--allow-destroyed")


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        words: of it.
        outputs: what it writes.
        needs: a module without which it is left out.
        beside: whether weights go to a file of their own.
        old: outputs that are there already.
    """

    words: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: str = ""
    beside: bool = False
    old: tuple[str, ...] = ()


def job(words: str, outputs: str = "", **rest: Any) -> Job:
    """Of a line; `CALIB` stands for samples."""
    found: list[str] = []
    for word in words.split():
        found += QUIET if word == "CALIB" else [word]
    return Job(tuple(found), tuple(outputs.split()), **rest)


TRAIN = "train m.onnx --method tune --ratio 0.3 --steps 6 --batch 8 --calib s.npz --allow-destroyed"
JOBS = {
    "prune": job("m.onnx --ratio 0.3 CALIB -o o.onnx --plan-out q.json --report r.html --summary s.md",
                 "o.onnx q.json r.html s.md"),
    "without samples": job("m.onnx --ratio 0.3 --no-bench -o o.onnx", "o.onnx"),
    "weights beside": job("m.onnx --ratio 0.3 --no-bench -o o.onnx", "o.onnx", beside=True),
    "replace": job("m.onnx --ratio 0.3 --no-bench -o o.onnx --force", "o.onnx", old=("o.onnx",)),
    "replace, weights beside": job("m.onnx --ratio 0.3 --no-bench -o o.onnx --force", "o.onnx", beside=True,
                                   old=("o.onnx",)),
    "sweep": job("m.onnx --ratios 0.2,0.4 CALIB -o o.onnx --report r.html", "o-0.2.onnx o-0.4.onnx r.html"),
    "plan": job("plan m.onnx --ratio 0.3 --calib s.npz -o q.json", "q.json"),
    "apply": job("apply m.onnx p.json CALIB -o o.onnx", "o.onnx"),
    "sensitivity": job("sensitivity m.onnx --calib s.npz --steps 2 -o q.json", "q.json"),
    "bench": job("bench m.onnx --rounds 10 --time-budget 1 --csv b.csv", "b.csv"),
    "verify": job("verify m.onnx pruned.onnx --plan p.json --calib s.npz"),
    "report": job("report told.json -o r.html", "r.html"),
    "inspect": job("inspect m.onnx"),
    "diff": job("diff m.onnx pruned.onnx"),
    "train": job(f"{TRAIN} --checkpoint c.pt --metrics t.jsonl -o o.onnx", "o.onnx c.pt.cut t.jsonl", needs="torch"),
    "search": job("search m.onnx --calib s.npz --trials 2 --allocation uniform --criterion l1 --repair none --report r.html",
                  "m.search.journal r.html", needs="optuna"),
    "distill": job("m.onnx --ratio 0.3 CALIB --repair distill --epochs 1 -o o.onnx", "o.onnx", needs="torch"),
}  # fmt: skip


@dataclass
class Found:
    """What came of a number of tries.

    Attributes:
        tried: site or signal -> tries in which something failed, or was killed.
        codes: exit code -> count.
        idle: tries in which it did not come to that.
        finds: (seed, words) of what must not be.
        seconds: of all.
    """

    tried: collections.Counter[str] = field(default_factory=collections.Counter)
    jobs: collections.Counter[str] = field(default_factory=collections.Counter)
    codes: collections.Counter[int] = field(default_factory=collections.Counter)
    idle: int = 0
    finds: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0


@functools.cache
def sound() -> dict[str, bytes]:
    """The inputs, by name."""
    from tests.fuzz.targets import model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model(), folder / "m.onnx")
        np.savez(folder / "s.npz", x=np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32))
        words = ["m.onnx", "--ratio", "0.3", *QUIET, "-o", "pruned.onnx", "--plan-out", "p.json", "--json"]
        command = [sys.executable, "-m", "onnxprune", *words]  # not here: its threads would be missing in copies
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
        (folder / "told.json").write_bytes(done.stdout)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- one command ------------------------------------------------------------------------------------------


@dataclass
class Done:
    """How a command has ended: its exit code, or a signal's number below zero, and what it said."""

    code: int
    said: str


class Running:
    """A command under way in a folder.

    Args:
        wanted: which.
        folder: with the inputs.
        prepare: what is done in its process before it.
        fresh: whether it is an interpreter of its own.
    """

    def __init__(self, wanted: Job, folder: Path, prepare: Callable[[], object], *, fresh: bool = False):
        self._heard, theirs = os.pipe()
        os.set_inheritable(theirs, True)
        if fresh:
            environment = dict(os.environ, PYTHONPATH=str(ROOT), TMPDIR=str(folder / "tmp"), OMP_NUM_THREADS="1")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onnxprune", *wanted.words], cwd=folder / "work", env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs,
            )  # fmt: skip
            self.pid = self._process.pid
        else:
            self.pid = os.fork()
            if not self.pid:
                _be(wanted, folder, prepare, theirs)
        os.close(theirs)

    def end(self, *, at: float | None = None, number: int = 0) -> Done:
        """Wait for it and all its copies; a signal is sent to it after `at` seconds."""
        said, begin, sent = b"", time.monotonic(), at is None
        while True:
            past = time.monotonic() - begin
            if not sent and past >= (at or 0):
                sent = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
            if past > HANG_S:
                os.kill(self.pid, signal.SIGKILL)
                said += HANGS.encode()
                break
            until = 1.0 if sent else max(0.0, min(1.0, (at or 0) - past))
            if select.select([self._heard], [], [], until)[0]:
                part = os.read(self._heard, 1 << 16)
                if not part:
                    break
                said += part
        os.close(self._heard)
        return Done(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), said.decode(errors="replace"))


def _be(wanted: Job, folder: Path, prepare: Callable[[], object], out: int) -> None:
    """The command, in a copy of this process, which ends with it."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(out, 2)
        os.chdir(folder / "work")
        tempfile.tempdir = str(folder / "tmp")
        sys.argv = ["onnxprune", *wanted.words]
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
        from onnxprune.cli import main

        weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # folders of the driver are not this process's
        if wanted.beside:
            _weights_beside()
        prepare()
        code = main()
        atexit._run_exitfuncs()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _weights_beside() -> None:
    from onnxprune.protobuf import external, serialize

    serialize.MAX_PROTOBUF = external.EXTERNAL_THRESHOLD = 20


# ---- what must hold ---------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """What is in it, by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if not p.is_dir()}


def wrong(folder: Path, wanted: Job, before: dict[str, bytes], done: Done, right: tuple[int, ...], left: bool) -> str:
    """What must not be, in words; empty: all is well.

    Args:
        folder: in which the command ran.
        wanted: the command.
        before: what was in it.
        done: how it has ended.
        right: exit codes that are right.
        left: whether temporary files may be left.
    """
    after, found = content(folder), []
    if done.code not in right:
        found.append(f"exit {done.code}")
    if "Traceback" in done.said or "our bug" in done.said or "please report" in done.said:
        found.append("a bug of ours")
    lines = [line for line in done.said.splitlines() if line.startswith("onnxprune: error:")]
    if done.code > 0 and len(lines) != 1:
        found.append(f"{len(lines)} lines")
    for name in before:
        if Path(name).name not in wanted.outputs and after.get(name) != before[name]:
            found.append(f"{name} is not as it was")
    outputs = [f"work/{name}" for name in wanted.outputs]
    if done.code == 0:
        found += [f"no {name}" for name in outputs if name not in after]
    found += [
        f"{name} is torn" for name in outputs if after.get(name) != before.get(name) and not _whole(folder / name)
    ]
    data = {name for name in after if re.fullmatch(r"work/o-[0-9a-f]{16}\.data", name)}
    rest = set(after) - set(before) - set(outputs) - (data if wanted.beside and "work/o.onnx" in after else set())
    found += [f"{name} is left" for name in rest if not left]
    return ", ".join(found)


def _whole(path: Path) -> bool:
    """Whether a file is all there."""
    if not path.exists():
        return True
    try:
        if path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".journal":  # a last line without an end is cut off by whoever goes on with it
            [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        elif path.suffix == ".cut":
            import torch

            torch.load(path, weights_only=True)
        elif path.suffix == ".html":
            return path.read_text().rstrip().endswith("</html>")
        else:
            return path.read_text().endswith("\n")
    except Exception:
        return False
    return True


# ---- tries ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def room(wanted: Job, into: Path):  # type: ignore[no-untyped-def]
    """A folder with the inputs and nothing else, for one command."""
    folder = Path(tempfile.mkdtemp(dir=into))
    try:
        for name in ("work", "tmp"):
            (folder / name).mkdir()
        for name, data in sound().items():
            (folder / "work" / name).write_bytes(data)
        if "o.onnx" in wanted.old:
            done = Running(Job(JOBS["replace"].words, (), beside=wanted.beside), folder, lambda: None).end()
            assert done.code == 0, done.said
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def undisturbed(name: str) -> tuple[dict[str, int], float]:
    """Calls by site of a command that nothing happens to, and its seconds."""
    with tempfile.TemporaryDirectory() as into, room(JOBS[name], Path(into)) as folder:
        before, begin = content(folder), time.monotonic()
        counting = Injector([folder])
        done = Running(JOBS[name], folder, counting.install).end()
        said = wrong(folder, JOBS[name], before, done, (0,), left=False)
        assert not said, f"{name}: {said}: {done.said}"
        return counting.counts, time.monotonic() - begin


def fault(seed: int, names: list[str], found: Found, into: Path) -> None:
    """One command under which something fails."""
    rnd = Random(seed)
    name = rnd.choice(names)
    wanted, (counts, _) = JOBS[name], undisturbed(name)
    with room(wanted, into) as folder:
        before = content(folder)
        if rnd.random() < 0.12:
            kind = rnd.choice(LIMITS)
            done = Running(wanted, folder, functools.partial(_limit, kind, rnd.random())).end()
            struck = int(done.code != 0)
        else:
            strike = injected.drawn(rnd, counts, [folder])
            kind = strike.site
            done = Running(wanted, folder, strike.install).end()
            struck = strike.struck
        said = wrong(
            folder, wanted, before, done, RIGHT.get(kind, (0, 3, 4, 7)), left=kind in ("unlink", "scandir", *LIMITS)
        )
    if kind == "addresses" and HANGS in done.said:
        struck, said = 0, ""  # OpenBLAS asks for its 32 MB again and again, for ever; a signal ends the command
    found.idle += not struck
    if struck:
        found.tried[kind] += 1
        found.jobs[name] += 1
        found.codes[done.code] += 1
    if said:
        found.finds.append((seed, f"{name}, {kind}: {said}: {done.said[-600:]}"))


def _limit(kind: str, share: float) -> None:
    """Have the system set a limit, small or large."""
    import resource

    if kind == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(20_000 * share**2),) * 2)
    elif kind == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(4 + 40 * share**2),) * 2)
    else:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + int((1 << 30) * share**2),) * 2)


def kill(seed: int, names: list[str], found: Found, into: Path) -> None:
    """One command that a signal comes to."""
    rnd = Random(seed)
    name, fresh = rnd.choice(names), seed % 8 == 0
    wanted, number = JOBS[name], rnd.choice(list(SIGNALS))
    took = undisturbed(name)[1] + (2.0 if fresh else 0.0)
    with room(wanted, into) as folder:
        before = content(folder)
        running = Running(wanted, folder, lambda: None, fresh=fresh)
        done = running.end(at=0.8 * rnd.random() * took, number=number)
        right = (0, SIGNALS[number])
        said = wrong(folder, wanted, before, done, right, left=number == signal.SIGKILL)
    found.idle += done.code == 0
    if done.code:
        found.tried[signal.Signals(number).name] += 1
        found.jobs[name] += 1
    found.codes[done.code] += 1
    if said:
        found.finds.append((seed, f"{name}, {signal.Signals(number).name}, fresh={fresh}: {said}: {done.said[-600:]}"))


def run(
    first: int,
    count: int,
    *,
    kills: bool = False,
    jobs: list[str] | None = None,
    told: Callable[[int, Found, list[tuple[int, str]]], None] | None = None,
) -> Found:
    """So many tries, from a seed on; `told` is called after each, with their number, what came of all, and what that
    one has found."""
    import onnxruntime  # noqa: F401, here, that no copy has to

    import onnxprune.cli  # noqa: F401, or a signal comes while a copy still imports what heeds it

    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is not heard
    found, begin = Found(), time.monotonic()
    names = jobs or [name for name, job in JOBS.items() if not job.needs or _there(job.needs)]
    sound()
    with tempfile.TemporaryDirectory(prefix="faults-") as into:
        for seed in range(first, first + count):
            before = len(found.finds)
            try:
                (kill if kills else fault)(seed, names, found, Path(into))
            except AssertionError as error:  # what is done before anything fails or is killed
                found.finds.append((seed, f"undisturbed: {error}"))
            found.seconds = time.monotonic() - begin
            if told is not None:
                told(seed - first + 1, found, found.finds[before:])
    return found


def _there(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, metavar="N", help="tries (100)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (0)")
    parser.add_argument("--kills", action="store_true", help="signals instead of faults")
    parser.add_argument("--jobs", default="", metavar="LIST", help=f"with commas: {', '.join(JOBS)}")
    parser.add_argument(
        "--hang", type=float, default=HANG_S, metavar="S", help="seconds of a hang; on a busy machine, more"
    )
    args = parser.parse_args()
    globals()["HANG_S"] = args.hang

    def told(number: int, found: Found, finds: list[tuple[int, str]]) -> None:
        for seed, said in finds:
            print(f"FIND seed {seed}: {said}", flush=True)
        if number % TOLD and number != args.count:
            return
        print(f"{number} tries from seed {args.first} in {found.seconds:.0f} s, {found.idle} came to nothing")
        for counts in (found.tried, found.jobs, found.codes):
            print("  " + ", ".join(f"{what} {count}" for what, count in sorted(counts.items(), key=str)), flush=True)

    found = run(args.first, args.count, kills=args.kills, jobs=[j for j in args.jobs.split(",") if j], told=told)
    return 1 if found.finds else 0


if __name__ == "__main__":
    sys.exit(main())
