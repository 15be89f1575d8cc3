"""Targets for what is read besides models: each takes bytes, and may raise nothing but errors of ours.

    python -m tests.fuzz.targets plan --runs 1000000 --seconds 600
    python -m tests.fuzz.targets all --seconds 60          # so long each

Where atheris is installed (the extra `fuzz`) it finds the bytes, led by what they reach; else they are drawn by seed.
Bytes are no file: they say which places of a sound one are changed, and how (`Draw`), so that what is tried gets past
the first check.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import CalibrationError, FileError, ModelError, PruneError, UsageError

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}
EACH = 200
"""Bytes of a try without atheris, at most."""
PLACES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, float("inf"), float("nan"), 1 << 31, 1 << 63, -(1 << 63), 1 << 70,
    "", "x", "\x00", "\ud800", "nan", "../x", "<b>", "1e5", [], {}, [[]], [None], [0] * 3, {"": 0}, {"x": [1]},
]  # fmt: skip
NET = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,5] y)
    <float[16,3,3,3] w0, float[16,16,3,3] w1, float[5,16] w2> {
    a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
    g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, w2) }"""


class Draw:
    """Choices out of bytes; 0 where they are at an end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        """The next."""
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def below(self, count: int) -> int:
        """A number below `count`."""
        return ((self.byte() << 16) + (self.byte() << 8) + self.byte()) % max(1, count)

    def left(self) -> bool:
        """Whether there are more."""
        return self.at < len(self.data)


def target(*errors: type[BaseException]) -> Callable[[Target], Target]:
    """Enter a target, and the errors that are right."""

    def enter(function: Target) -> Target:
        @functools.wraps(function)
        def called(data: bytes) -> None:
            with contextlib.suppress(*errors):
                function(data)

        TARGETS[function.__name__] = called
        return called

    return enter


def damaged(whole: bytes, draw: Draw) -> bytes:
    """A sound file with other bytes, fewer, or some of them twice."""
    data = bytearray(whole)
    while draw.left() and data:
        how, at = draw.byte() % 8, draw.below(len(data))
        if how < 5:
            data[at] = draw.byte()
        elif how == 5:
            del data[at : at + draw.byte()]
        elif how == 6:
            data[at:at] = data[at : at + draw.byte()]
        else:
            del data[at:]
    return bytes(data)


def changed(value: Any, draw: Draw) -> Any:
    """Sound JSON with other values at some places, keys that are gone, and lists of other lengths."""
    value = json.loads(json.dumps(value))
    while draw.left():
        place = value
        while isinstance(place, (dict, list)) and place:
            key = list(place)[draw.below(len(place))] if isinstance(place, dict) else draw.below(len(place))
            inner = place[key]
            if isinstance(inner, (dict, list)) and inner and draw.byte() % 8:
                place = inner
                continue
            how = draw.byte() % 8
            if how == 0:
                del place[key]
            elif how == 1 and isinstance(place, list):
                place.append(inner)
            else:
                place[key] = copy.deepcopy(PLACES[draw.below(len(PLACES))])
            break
        else:
            return value
    return value


# ---- what is sound ---------------------------------------------------------------------------------------


@functools.cache
def model() -> onnx.ModelProto:
    """A small network."""
    from tests.channels import surgery

    return surgery.model_of(NET)


@functools.cache
def folder() -> Path:
    """Where files of a try lie."""
    kept = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    folder.kept = kept  # type: ignore[attr-defined]
    return Path(kept.name)


@functools.cache
def told() -> tuple[Any, ...]:
    """The JSON that commands print: a result, a sweep, sensitivity, inspect, bench, verify."""
    from onnxprune.cli import main

    here, found = folder(), []
    onnx.save(model(), here / "m.onnx")
    np.savez(here / "s.npz", x=np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32))
    m, s, o = (str(here / name) for name in ("m.onnx", "s.npz", "o.onnx"))
    for words in (
        [m, "--ratio", "0.3", "--calib", s, "--no-bench", "--plan-out", str(here / "p.json"), "-o", o],
        [m, "--ratios", "0.3,0.5", "--calib", s, "--no-bench", "-o", str(here / "o-{ratio}.onnx")],
        ["sensitivity", m, "--calib", s, "--steps", "2"],
        ["inspect", m],
        ["bench", m, "--rounds", "10"],
        ["verify", m, o, "--plan", str(here / "p.json")],
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            code = main([*words, "--json", "--allow-destroyed", "--force"] if words[0] == m else [*words, "--json"])
        text = out.getvalue()
        if not text:
            raise RuntimeError(f"{words} ended with {code}")
        found.append(json.loads(text))
    return tuple(found)


@functools.cache
def archive() -> bytes:
    """Samples, one member of them packed."""
    import zipfile

    whole, one = io.BytesIO(), io.BytesIO()
    np.save(one, np.ones((4, 3, 8, 8), np.float32))
    with zipfile.ZipFile(whole, "w") as made:
        made.writestr("x.npy", one.getvalue())
        made.writestr("labels.npy", one.getvalue()[:200], zipfile.ZIP_DEFLATED)
    return whole.getvalue()


@functools.cache
def opened() -> Any:
    """The network, as commands hold it."""
    from onnxprune.pipeline.opened import open_model

    return open_model(model(), trusted=True)


# ---- targets ---------------------------------------------------------------------------------------------


@target(UsageError)
def plan(data: bytes) -> None:
    """The file of a plan."""
    from onnxprune.plan import PrunePlan

    PrunePlan.from_json(json.dumps(changed(told()[0]["plan"], Draw(data))))


@target(PruneError)
def applied(data: bytes) -> None:
    """A plan that can be read, carried out."""
    from onnxprune.pipeline.apply import apply_plan
    from onnxprune.pipeline.settings import Settings
    from onnxprune.plan import PrunePlan

    draw = Draw(data)
    apply_plan(opened(), PrunePlan.from_dict(changed(told()[0]["plan"], draw)), Settings(repair="none"))


@target(ValueError)
def page(data: bytes) -> None:
    """Any JSON as a page."""
    from onnxprune.report.page import render

    draw = Draw(data)
    kinds = told()
    render(changed(kinds[draw.below(len(kinds))], draw), name="m")


@target(UsageError)
def result(data: bytes) -> None:
    """A result, read back."""
    import onnxprune

    onnxprune.Result.from_dict(changed(told()[0], Draw(data)))


@target(CalibrationError)
def npz(data: bytes) -> None:
    """An archive of samples."""
    _samples("s.npz", damaged(archive(), Draw(data)))


@target(CalibrationError)
def npy(data: bytes) -> None:
    """An array of samples."""
    whole = io.BytesIO()
    np.save(whole, np.ones((4, 3, 8, 8), np.float32))
    _samples("s.npy", damaged(whole.getvalue(), Draw(data)))


@target(CalibrationError)
def picture(data: bytes) -> None:
    """A folder with one image."""
    from PIL import Image

    from onnxprune.samples.images import ImageSpec

    whole, draw = io.BytesIO(), Draw(data)
    kind = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")[draw.byte() % 6]
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(whole, kind)
    into = folder() / "pictures"
    into.mkdir(exist_ok=True)
    (into / "a.png").write_bytes(damaged(whole.getvalue(), draw))
    _load(into, ImageSpec((8, 8)))


def _samples(name: str, data: bytes) -> None:
    path = folder() / name
    path.write_bytes(data)
    _load(path)


def _load(path: Path, image: Any = None) -> None:
    from onnxprune.samples.calibration import open_calibration

    for batch in open_calibration(path, opened().specs, image=image).batches(2):
        assert all(np.asarray(v).shape[1:] == (3, 8, 8) for v in batch.values())


@target(ModelError)
def file(data: bytes) -> None:
    """A model's file, as far as the checks go."""
    from onnxprune.files.parse import parse
    from onnxprune.files.read import check_model

    check_model(parse(damaged(model().SerializeToString(), Draw(data)), "m.onnx"), name="m.onnx")


@target(UsageError)
def words(data: bytes) -> None:
    """What options say."""
    from onnxprune.measure.kinds.asked import check_kinds
    from onnxprune.pipeline import options
    from onnxprune.pipeline.gates import Asked

    draw = Draw(data)
    spelled = [
        "",
        "=",
        ",",
        "x",
        "1",
        "-1",
        "1e9",
        "nan",
        "inf",
        "box_f1",
        "top1",
        "boxes",
        "axis",
        "GB",
        ":",
        " ",
        "é",
    ]
    text = "".join(spelled[draw.below(len(spelled))] for _ in range(1 + draw.byte() % 8))
    readers: tuple[Callable[[str], Any], ...] = (
        options.width, options.whole, options.size_of, options.words, options.regular, Asked.read,
        lambda t: options.by_name(options.numbers, "NAME=1")([t]), lambda t: check_kinds({"y": t}),
    )  # fmt: skip
    with contextlib.suppress(ValueError):  # argparse says it in its own words
        readers[draw.below(len(readers))](text)


@target(FileError)
def grids(data: bytes) -> None:
    """What is known of this machine's layers: a file that says nothing is none."""
    from onnxprune.timing.grids import Grids

    row = [[0.5, 1.0], [0.6, 1.0]]
    sound = {"schema": 2, "layers": {"Conv 3": {"0": row, "1": row, "mixed": [[0.5], [1.0]], "alone": [[1.0], [1.0]]}}}
    path = folder() / "layers.json"
    path.write_text(json.dumps(changed(sound, Draw(data))))
    Grids(path).load()


# ---- engines ---------------------------------------------------------------------------------------------


def drawn(name: str, runs: int, seconds: float, first: int = 0) -> int:
    """Tries of random bytes. Returns how many there were; what a target lets through is raised, with the seed."""
    wanted = TARGETS[name]
    wanted(b"")  # what is made once
    begin = time.monotonic()
    for seed in range(first, first + runs):
        if time.monotonic() - begin > seconds:
            return seed - first
        numbers = np.random.default_rng(seed)
        data = numbers.bytes(int(numbers.integers(1, EACH if seed % 4 == 0 else 16)))
        try:
            wanted(data)
        except Exception as error:
            error.add_note(f"python -m tests.fuzz.targets {name} --first {seed} --runs 1")
            raise
    return runs


def guided(name: str, runs: int, seconds: float) -> None:
    """Tries of bytes that atheris finds; ends the process."""
    import atheris

    wanted = TARGETS[name]
    with atheris.instrument_imports(include=["onnxprune"]):
        wanted(b"")  # imports what it needs
    atheris.Setup(
        [name, f"-runs={min(runs, (1 << 31) - 1)}", f"-max_total_time={seconds:.0f}", "-max_len=256", "-seed=1"], wanted
    )
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*TARGETS, "all"))
    parser.add_argument("--runs", type=int, default=1 << 40, metavar="N", help="tries, of each")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="for each (60)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--atheris", action="store_true", help="led by what is reached; one target")
    args = parser.parse_args()
    if args.atheris:
        guided(args.name, args.runs, args.seconds)
        return 0
    for name in TARGETS if args.name == "all" else (args.name,):
        begin = time.monotonic()
        count = drawn(name, args.runs, args.seconds, args.first)
        print(f"{name:10} {count:9} runs in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
