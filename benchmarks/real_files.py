"""Real files: an ImageNet classifier on photographs, and PP-OCR's recogniser and direction classifier on words.

    python benchmarks/real_files.py [--models DIR]

Each is pruned by 30 % and by 50 % of its MACs, in a process of its own that tells time and peak memory, and compared
with the original on samples that calibration never saw: other photographs, other words. A model or a package that is
missing is skipped with a line.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import child
import common
import numpy as np
import onnx
from accuracy import method

import onnxprune
from onnxprune.runtime.sessions import open_session

SEED = 0
GCOMPRIS = Path("/usr/share/gcompris-qt/rcc")
Scores = dict[str, str]


@dataclass(frozen=True)
class Subject:
    """A file to prune: its samples for calibration, and a score of any file against the original."""

    file: str
    calibration: np.ndarray
    score: Callable[[Path, Path], Scores]


def outputs(path: Path, x: np.ndarray, batch: int = 16) -> np.ndarray:
    session = open_session(str(path), threads=1, optimise=True)
    name = session.inputs[0].name
    return np.concatenate([session.run({name: x[i : i + batch]})[0] for i in range(0, len(x), batch)])


# ---- EfficientNet-Lite0 ------------------------------------------------------------------------------------


def add_photographs(parser: argparse.ArgumentParser) -> None:
    """The options that say where photographs are."""
    add = parser.add_argument
    add("--photos", type=Path, metavar="DIR", help="more photographs for calibration: a folder of yours")
    add("--packed", type=Path, metavar="DIR", help="packed photographs instead, in a folder with their reader")
    add("--gcompris", type=Path, default=GCOMPRIS, metavar="DIR", help=f"gcompris's resource files ({GCOMPRIS})")


def efficientnet(args: Any) -> Subject:
    """One view each of as many photographs as there are; the report looks at others of the same collection, and at
    several views each of photographs from elsewhere."""
    if args.packed:
        return packed(args)
    import photographs

    many, known = photographs.gcompris(args.gcompris), photographs.labelled()
    alike, most = many[: len(many) // 4], many[len(many) // 4 :]
    fitted = [*photographs.folder(args.photos), *most, *photographs.files(photographs.FITTED)]
    held = [*photographs.files(photographs.HELD), *(p for p, _ in known)]
    if not fitted or not held:
        raise ImportError('no photographs: pip install -e ".[bench]"')
    if not many:
        common.say("gcompris-qt-data (Debian) is not installed: few photographs, and several views of each")
    common.say(f"photographs: {len(fitted)} for calibration, {len(alike)} of the same kind and {len(held)} others held")
    sets = {"others": photographs.views(held, 5 * len(held), np.random.default_rng(1))}
    if alike:
        sets = {"same collection": photographs.views(alike, len(alike), np.random.default_rng(2), 0.6), **sets}
    whole = np.stack([photographs.centre(p) for p, _ in known]) if known else np.empty((0, 3, 224, 224), np.float32)
    score = closeness(sets, whole, np.array([c for _, c in known]))
    samples = photographs.views(fitted, args.images, np.random.default_rng(SEED), 0.6 if many else 0.35)
    return Subject("efficientnet_lite0.onnx", samples, score)


def packed(args: Any) -> Subject:
    """The same on packed photographs of two kinds: fitted on some of the first kind, judged on 150 others and on the
    last 200 of the second, whose classes are known."""
    read = common.reader(args.packed)
    first, _ = read.imagenet("imagen600.npz", 224)
    whole, classes = read.imagenet("imagenet600.npz", 224)
    order = np.random.default_rng(SEED).permutation(len(first))
    sets = {"same kinds": first[order[-150:]], "others": whole[-200:]}
    return Subject(
        "efficientnet_lite0.onnx", first[order[: args.images]], closeness(sets, whole[-200:], classes[-200:])
    )


def closeness(sets: Mapping[str, np.ndarray], whole: np.ndarray, classes: np.ndarray) -> Callable[[Path, Path], Scores]:
    """What tells how often a file says what the original says of sets of photographs, and what is right of `whole`."""

    def score(original: Path, path: Path) -> Scores:
        found = {}
        for name, x in sets.items():
            a, b = outputs(original, x), outputs(path, x)
            cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            same = int((a.argmax(1) == b.argmax(1)).sum())
            found |= {
                f"{name}: top-1 as the original": f"{same} of {len(a)}",
                "cosine of " + name: f"{cosine.mean():.3f}",
            }
        if len(classes):
            order = np.argsort(-outputs(path, whole), axis=1)
            right = int((order[:, 0] == classes).sum()), int((order[:, :5] == classes[:, None]).any(1).sum())
            found |= {"labelled, top-1": f"{right[0]} of {len(classes)}", "top-5": f"{right[1]} of {len(classes)}"}
        return found

    return score


# ---- PP-OCR ------------------------------------------------------------------------------------------------


def words(args: Any) -> tuple[list[str], list[str], Callable[[str], np.ndarray]]:
    """Words for calibration, words for the report, and the pen."""
    import rendered

    rng = np.random.default_rng(SEED)
    every, faces = rendered.vocabulary(rng), rendered.fonts()
    if not faces:
        raise ImportError("no DejaVu fonts: pip install matplotlib")
    fitted, held = every[: args.images], every[args.images : args.images + args.words]
    return fitted, held, lambda word: rendered.draw(word, faces, rng)


def recogniser(args: Any) -> Subject:
    import rendered

    fitted, held, draw = words(args)
    samples = np.stack([rendered.as_input(draw(w), 320) for w in fitted])
    by_width: dict[int, list[tuple[str, np.ndarray]]] = {}
    for word in held:
        x = rendered.as_input(draw(word))
        by_width.setdefault(x.shape[2], []).append((word, x))

    def score(original: Path, path: Path) -> Scores:
        characters = rendered.alphabet(onnx.load(path))
        right = errors = 0
        for pairs in by_width.values():
            read = rendered.decode(outputs(path, np.stack([x for _, x in pairs])), characters)
            right += sum(word == seen for (word, _), seen in zip(pairs, read, strict=True))
            errors += sum(rendered.distance(word, seen) for (word, _), seen in zip(pairs, read, strict=True))
        return {"exact": f"{right} of {len(held)}", "character errors": f"{errors / sum(map(len, held)):.4f}"}

    return Subject("ch_PP-OCRv4_rec_infer.onnx", samples, score)


def direction(args: Any) -> Subject:
    """The classifier of 0 and 180 degrees: every word both ways."""
    import rendered

    fitted, held, draw = words(args)

    def both(some: list[str]) -> np.ndarray:
        images = [draw(w) for w in some]
        return np.stack([rendered.as_input(x, 192) for i in images for x in (i, i[::-1, ::-1].copy())])

    samples, others = both(fitted[: len(fitted) // 2]), both(held[: len(held) // 2])

    def score(original: Path, path: Path) -> Scores:
        turned = outputs(path, others).argmax(1)
        right = int((turned == np.arange(len(others)) % 2).sum())
        same = int((turned == outputs(original, others).argmax(1)).sum())
        return {"right way up": f"{right} of {len(others)}", "as the original": f"{same} of {len(others)}"}

    return Subject("ch_ppocr_mobile_v2.0_cls_infer.onnx", samples, score)


SUBJECTS = {"efficientnet": efficientnet, "rec": recogniser, "cls": direction}


# ---- measuring ---------------------------------------------------------------------------------------------


def measure(
    original: Path, ratio: float, subject: Subject, settings: Mapping[str, Any], args: Any, folder: Path
) -> dict[str, Any]:
    """Prune in a child process, then score and time what came out."""
    calibration, out = folder / "calibration.npz", args.out / f"{original.stem}_{ratio:g}.onnx"
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez(calibration, x=subject.calibration)
    row = child.run(original, ratio, calibration, out, settings, args.timeout)
    if "refused" in row:
        return row
    row["scores"] = subject.score(original, out)
    if args.bench:
        c = onnxprune.bench(
            [original, out], names=["original", "pruned"], feeds={"x": subject.calibration[:1]}, time_budget_s=30
        ).comparisons[0]
        row |= {"speedup": [c.speedup, c.low, c.high]}
    return row


def run(args: Any) -> list[dict[str, Any]]:
    cache, rows = common.Cache(args.cache), []
    for name in args.only or SUBJECTS:
        try:
            subject = SUBJECTS[name](args)
        except ImportError as error:
            common.say(f"skipped: {name}: {error}")
            continue
        path = args.models / subject.file
        if not path.is_file():
            common.say(f"skipped: {name}: {path} is not there")
            continue
        base = subject.score(path, path)
        rows.append({"file": subject.file, "ratio": 0.0, "method": "", "scores": base})
        common.say(f"{subject.file}: {base}")
        for ratio, (title, settings) in itertools.product(args.ratios, args.method):
            key = {
                "benchmark": "real files",
                "model": common.file_digest(path),
                "ratio": ratio,
                "settings": settings,
                "images": args.images,
                "samples": hashlib.sha256(subject.calibration.tobytes()).hexdigest()[:16],
                "words": args.words,
                "bench": args.bench,
                "code": common.code_digest(),
            }
            with tempfile.TemporaryDirectory() as folder:
                row = cache.get(
                    key,
                    lambda p=path, r=ratio, s=subject, c=settings, f=Path(folder): measure(p, r, s, c, args, f),
                )
            rows.append({**row, "file": subject.file, "ratio": ratio, "method": title})
            common.say(f"{subject.file} {ratio:g} {title}: {row.get('scores') or row['refused']}")
    return rows


def line(row: Mapping[str, Any]) -> list[str]:
    if "refused" in row:
        return [f"−{row['ratio']:.0%}, {row['method']}", f"refused: {row['refused']}", "", "", ""]
    scores = ", ".join(f"{k} {v}" for k, v in row["scores"].items())
    if not row["ratio"]:
        return ["original", scores, "", "", ""]
    speed = f"{row['speedup'][0]:.2f}x [{row['speedup'][1]:.2f}, {row['speedup'][2]:.2f}]" if "speedup" in row else ""
    cost = f"{row['seconds']:.0f} s ({row['cpu_seconds']:.0f} CPU)"
    return [f"−{row['macs_removed']:.1%}, {row['method']}", scores, speed, cost, f"{row['peak_mib'] / 1024:.1f} GiB"]


def main() -> None:
    parser = common.options(__doc__, "real_files.jsonl")
    add = parser.add_argument
    add("--only", type=common.words, help=f"of {','.join(SUBJECTS)}")
    add("--ratios", type=common.numbers, default=(0.3, 0.5), help="shares of the MACs (0.3,0.5)")
    add("--images", type=int, default=128, help="calibration samples (128)")
    add_photographs(parser)
    add("--words", type=int, default=400, help="words read for the report (400)")
    add("--method", type=method, action="append", help="[NAME:]criterion=l1,repair=refit; else the default")
    add("--no-bench", dest="bench", action="store_false", help="do not measure speed")
    add("--timeout", type=float, default=3600, help="seconds for one run (3600)")
    add("--out", type=Path, default=common.HERE / ".cache" / "real", metavar="DIR", help="where the pruned files go")
    args = parser.parse_args()
    args.method = args.method or [("default", {})]
    begin = time.perf_counter()
    rows = run(args)
    for file in dict.fromkeys(r["file"] for r in rows):
        head = [file, "on held-out samples", "speed-up, 1 thread", "time", "peak memory"]
        print(common.table(head, [line(r) for r in rows if r["file"] == file]) + "\n")
    print(f"{args.images} unlabelled calibration samples. {common.footer(time.perf_counter() - begin)}")
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
