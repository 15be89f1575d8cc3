"""Mutated models through the whole prune: each is pruned and written, or refused by an error of ours.

    python -m tests.fuzz.whole --count 20000
    python -m tests.fuzz.whole --count 2000 --first 500 --models a.onnx,b.onnx

A worker prunes one model after another and says which it begins; who watches it sees when it dies of one or takes too
long, and starts another behind it. A run of a seed is the same every time: `--first SEED --count 1` repeats a find.
Outcomes: `pruned`, `refused` (by class), or a find: an `escape` (another exception), an `abort`, a `hang`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
HANG_S = 180.0
"""Without a word from a worker."""
WORKER = (sys.executable, "-m", "tests.fuzz.whole")
FINDS = ("escape", "abort", "hang")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"ratio": 0.3},
    {"ratio": 0.5, "repair": "none", "round_to": 1},
    {"ratio": 0.8, "best_effort": True},
    {"ratio": 0.5, "of": "params", "methods": ("channels", "blocks")},
    {"ratio": 0.5, "prune_statistics": True, "best_effort": True},
    {"lossless": True},
)
WITH_SAMPLES = 0.3
"""Share of the models that are pruned with samples: it takes ten times as long."""


@dataclass
class Found:
    """What came of a number of models.

    Attributes:
        outcomes: outcome -> count.
        finds: (seed, outcome, words) of what must not be.
        slowest: (seconds, seed).
        seconds: of all.
    """

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    finds: list[tuple[int, str, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    seconds: float = 0.0

    def add(self, seed: int, outcome: str, words: str, took: float) -> None:
        """Count one."""
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (took, seed))
        if outcome in FINDS:
            self.finds.append((seed, outcome, words))


def one(seed: int, models: list[str], folder: str) -> tuple[str, str]:
    """Mutate a model and prune it. Returns (outcome, words)."""
    import numpy as np
    import onnx

    import onnxprune
    from onnxprune.errors import PruneError
    from tests.channels.test_random_graphs import random_model
    from tests.fuzz.mutations import mutate

    rnd = Random(seed)
    try:
        model = onnx.load(rnd.choice(models)) if models else random_model(rnd)
        mutate(model, rnd)
        given: dict[str, Any] = dict(rnd.choice(SETTINGS))
        if rnd.random() < WITH_SAMPLES and "lossless" not in given:
            given["calibration"] = [np.random.default_rng(seed).standard_normal((8, 3, 8, 8)).astype(np.float32)]
        data = model.SerializeToString()
    except (ValueError, TypeError):  # a mutation that protobuf does not hold
        return "not a model", ""
    if rnd.random() < 0.1:
        data = flipped(data, rnd)
    path = os.path.join(folder, "m.onnx")
    Path(path).write_bytes(data)
    output = os.path.join(folder, "o.onnx")
    try:
        onnxprune.prune(path, threads=1, **given).save(output, force=True)
    except PruneError as error:
        if type(error) is PruneError or "our bug" in str(error):
            return "escape", f"{type(error).__name__}: {error}"
        return f"refused: {type(error).__name__}", str(error)
    except Exception as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        return "escape", f"{type(error).__name__}: {str(error)[:200]} at {Path(last.filename).name}:{last.lineno}"
    if Path(path).read_bytes() != data:
        return "escape", "the model was written to"
    return "pruned", ""


def flipped(data: bytes, rnd: Random) -> bytes:
    """A few other bits, or fewer bytes."""
    changed = bytearray(data)
    for _ in range(rnd.randint(1, 4)):
        changed[rnd.randrange(len(changed))] ^= 1 << rnd.randrange(8)
    return bytes(changed[: rnd.randrange(len(changed))]) if rnd.random() < 0.2 else bytes(changed)


def work(first: int, last: int, models: list[str]) -> None:
    """Prune model after model; a line before and a line behind each."""
    warnings.simplefilter("ignore")
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, last):
            say.write(json.dumps([seed]) + "\n")
            begin = time.monotonic()
            outcome, words = one(seed, models, folder)
            say.write(json.dumps([seed, outcome, words, time.monotonic() - begin]) + "\n")


def run(first: int, count: int, *, models: list[str] | None = None, seconds: float = float("inf")) -> Found:
    """Prune `count` mutated models, or as many as go into so many seconds.

    Args:
        first: seed of the first.
        count: how many.
        models: paths of what is mutated; else random graphs.
        seconds: after which no more are begun.
    """
    found, begin, seed = Found(), time.monotonic(), first
    while seed < first + count and time.monotonic() - begin < seconds:
        seed = _watch(seed, first + count, models or [], found, begin + seconds)
    found.seconds = time.monotonic() - begin
    return found


def _watch(seed: int, last: int, models: list[str], found: Found, until: float) -> int:
    """One worker, to its end. Returns the seed behind the last that is known of."""
    command = [*WORKER, "--work", f"{seed},{last}", "--models", ",".join(models)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    worker = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_pass_on, args=(worker.stdout, lines), daemon=True).start()
    begun = None
    try:
        for line in _heard(lines, until):
            said = json.loads(line)
            begun = said[0] if len(said) == 1 else None
            if begun is None:
                seed = said[0] + 1
                found.add(*said)
        if begun is not None and worker.poll() is not None:
            found.add(begun, "abort", f"status {worker.returncode}", 0.0)
            seed = begun + 1
    except TimeoutError:
        if begun is not None:
            found.add(begun, "hang", f"more than {HANG_S:g} s", HANG_S)
            seed = begun + 1
    finally:
        worker.kill()
        worker.wait()
    return seed


def _pass_on(said: Iterable[str], lines: queue.Queue[str]) -> None:
    for line in said:
        lines.put(line)
    lines.put("")


def _heard(lines: queue.Queue[str], until: float) -> Iterator[str]:
    """Lines of a worker until it ends or time is over.

    Raises:
        TimeoutError: it has been silent for too long.
    """
    while time.monotonic() < until:
        try:
            line = lines.get(timeout=HANG_S)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            return
        yield line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="models to try (1000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="begin none after that")
    parser.add_argument("--models", default="", metavar="LIST", help="files to mutate, with commas (random graphs)")
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    models = [m for m in args.models.split(",") if m]
    if args.work:
        work(*map(int, args.work.split(",")), models)
        return 0
    found = run(args.first, args.count, models=models, seconds=args.seconds)
    total = sum(found.outcomes.values())
    print(f"{total} models from seed {args.first} in {found.seconds:.0f} s")
    for outcome, count in found.outcomes.most_common():
        print(f"{count:7} {outcome}")
    print(f"slowest: {found.slowest[0]:.1f} s (seed {found.slowest[1]})")
    for seed, outcome, words in found.finds:
        print(f"FIND seed {seed}: {outcome}: {words}")
    return 1 if found.finds else 0


if __name__ == "__main__":
    sys.exit(main())
