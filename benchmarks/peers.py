"""Other pruners beside ours: the same files, samples, count of MACs, test images and clock, in one command.

    pip install torch==2.13.0 onnxsim && pip install --no-deps torch-pruning
    python benchmarks/peers.py

None of them trains. Every method gets the same 512 unlabelled images and is set to come as close to the asked share
of MACs as its steps allow; what it really removed stands in the table. All files of a net and ratio are timed
together, interleaved, against the original (one thread). A peer that is not installed is skipped with a line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
from accuracy import method

import onnxprune

RATIOS = (0.5, 0.65, 0.8, 0.9)


@dataclass
class Job:
    """One net, one ratio, one set of samples, and what several methods make of it alike."""

    net: str
    path: Path
    ratio: float
    calibration: np.ndarray
    seed: int
    iterations: int
    knobs: dict[Any, float] = field(default_factory=dict)

    @cached_property
    def macs(self) -> float:
        return common.macs(self.path)

    @cached_property
    def batches(self) -> list[dict[str, np.ndarray]]:
        return [{"x": self.calibration[i : i + 64]} for i in range(0, len(self.calibration), 64)]

    @cached_property
    def module(self) -> Any:
        import torch_peers

        return torch_peers.load(self.net, self.path)

    @cached_property
    def simplified(self) -> onnx.ModelProto:
        """onnxsim cuts convs whose BatchNorm is folded."""
        import onnxsim

        result = onnxsim.simplify(onnx.load(self.path))
        return result[0] if isinstance(result, tuple) else result

    def knob(self, name: str, macs_at: Callable[[float], float]) -> float:
        """The setting of a pruner that comes closest to the ratio."""
        from torch_peers import closest

        if name not in self.knobs:
            self.knobs[name] = closest(lambda share: 1 - macs_at(share) / self.macs, self.ratio)
        return self.knobs[name]


# ---- the methods -------------------------------------------------------------------------------------------


def ours(job: Job, **settings: Any) -> onnx.ModelProto:
    return onnxprune.prune(job.path, job.ratio, calibration=job.calibration, seed=job.seed, threads=1, **settings).model


def torch_pruning(job: Job, importance: str, reestimated: bool) -> onnx.ModelProto:
    import torch
    import torch_peers

    torch.set_num_threads(1)
    share = job.knob(importance, lambda s: torch_peers.count(torch_peers.prune(job.module, importance, s)))
    module = torch_peers.prune(job.module, importance, share)
    if reestimated:
        torch_peers.reestimate(module, job.calibration)
    return torch_peers.export(module)


def onnxsim_l2(job: Job) -> onnx.ModelProto:
    import onnxsim

    def at(share: float) -> onnx.ModelProto:
        return onnxsim.apply_structured_pruning(job.simplified, sparsity=share)

    return at(job.knob("onnxsim l2", lambda share: common.macs(at(share))))


def onnxsim_wanda(job: Job) -> onnx.ModelProto:
    """Widths do not depend on the samples: the search for them looks at two images."""
    import onnxsim

    def at(share: float, batches: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
        return onnxsim.apply_structured_wanda_pruning(job.simplified, batches, sparsity=share)

    few = [{"x": job.calibration[:2]}]
    return at(job.knob("onnxsim wanda", lambda share: common.macs(at(share, few))), job.batches)


def onnxsim_bias(job: Job) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.correct_bias(job.simplified, onnxsim_wanda(job), job.batches)


def onnxsim_tuned(job: Job) -> onnx.ModelProto:
    import onnxsim

    pruned = onnxsim.apply_pruning_finetune(job.simplified, onnxsim_wanda(job), job.batches)
    return onnxsim.apply_block_finetune_all_blocks(
        job.simplified, pruned, calibration_data=job.batches, num_iterations=job.iterations
    )[0]


def regression(job: Job) -> onnx.ModelProto:
    import regression

    subject = onnxprune.open_model(job.path)
    share = job.knob("regression", lambda s: common.macs(regression.cut(subject, s)))
    return regression.prune(job.path, share, job.calibration, job.seed)


@dataclass(frozen=True)
class Peer:
    """A method, the modules that it needs, and the script beside this one that carries it out."""

    make: Callable[[Job], onnx.ModelProto]
    needs: tuple[str, ...] = ()
    script: str | None = None


TORCH = (("torch", "torch_pruning"), "torch_peers.py")
PEERS = {
    "onnxprune (default)": Peer(ours),
    "L1 + linear regression (as AIMET describes it, ours)": Peer(regression, script="regression.py"),
    "Torch-Pruning L2": Peer(lambda job: torch_pruning(job, "l2", False), *TORCH),
    "Torch-Pruning L2 + BN re-estimation": Peer(lambda job: torch_pruning(job, "l2", True), *TORCH),
    "Torch-Pruning FPGM + BN re-estimation": Peer(lambda job: torch_pruning(job, "fpgm", True), *TORCH),
    "onnxsim structured L2": Peer(onnxsim_l2, ("onnxsim",)),
    "onnxsim structured Wanda": Peer(onnxsim_wanda, ("onnxsim",)),
    "onnxsim Wanda + its bias correction": Peer(onnxsim_bias, ("onnxsim",)),
    "onnxsim Wanda + its fine-tuning": Peer(onnxsim_tuned, ("onnxsim",)),
}


def installed(peers: Mapping[str, Peer]) -> dict[str, Peer]:
    """Those whose modules can be imported; a line for each other."""
    found = {}
    for name, peer in peers.items():
        try:
            for module in peer.needs:
                importlib.import_module(module)
        except ImportError as error:
            common.say(f"skipped: {name}: {error}")
        else:
            found[name] = peer
    return found


def package_versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "torch-pruning", "onnxsim"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ---- measuring ---------------------------------------------------------------------------------------------


def one(job: Job, peer: Peer, data: common.Data, out: Path) -> dict[str, Any]:
    """Run a method, keep its file, count and score it; its error is a result too."""
    begin = time.perf_counter()
    try:
        model = peer.make(job)
        seconds = time.perf_counter() - begin
        out.write_bytes(model.SerializeToString())
        return {
            "file": out.name,
            "seconds": seconds,
            "macs_removed": 1 - common.macs(out) / job.macs,
            "top1": common.top1(out, data),
            "packages": package_versions(),
        }
    except Exception as error:
        traceback.print_exc()
        return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}


def settled(row: Mapping[str, Any], file: Path) -> bool:
    """Whether a cached result can stand: it made a file, and the file is still there. A crash is tried again."""
    return "file" in row and file.exists()


def timed(path: Path, rows: list[dict[str, Any]], out: Path, budget_s: float) -> dict[str, Any]:
    """Speed-up of every file over the original, all in the same rounds: {method: [median, low, high]}."""
    files = {r["method"]: out / r["file"] for r in rows if "file" in r}
    result = onnxprune.bench(
        [path, *files.values()], names=["original", *files], threads=1, rounds=40, time_budget_s=budget_s
    )
    return {c.candidate: [c.speedup, c.low, c.high] for c in result.comparisons}


def wanted(name: str, words: Sequence[str]) -> bool:
    """Whether a method's name has one of the words in it; without words all are wanted."""
    return not words or any(word.lower() in name.lower() for word in words)


def run(args: Any, data: Mapping[str, common.Data], cache: common.Cache) -> list[dict[str, Any]]:
    """All methods on all nets and ratios, one after the other; `data`: of each net."""
    own = {f"onnxprune {name}": Peer(partial(ours, **settings)) for name, settings in args.method or ()}
    peers = installed({n: p for n, p in (own | PEERS).items() if wanted(n, args.only)})
    rows: list[dict[str, Any]] = []
    for (net, path), ratio, seed in itertools.product(args.found.items(), args.ratios, range(args.seeds)):
        out = args.out / f"{net}_{ratio:g}_{seed}"
        out.mkdir(parents=True, exist_ok=True)
        job = Job(net, path, ratio, data[net].calibration(seed, args.samples), seed, args.iterations)
        here = []
        for name, peer in peers.items():
            file = out / ("".join(c if c.isalnum() else "_" for c in name) + ".onnx")
            key = {
                "benchmark": "peers",
                "method": name,
                "model": common.file_digest(path),
                "ratio": ratio,
                "seed": seed,
                "samples": args.samples,
                "test_images": len(data[net].x),
                "code": common.code_digest() if not peer.needs else None,
                "packages": package_versions() if peer.needs else None,
                "script": common.file_digest(common.HERE / peer.script) if peer.script else None,
                "iterations": args.iterations if "tuning" in name else None,
                "out": str(file),
            }
            row = cache.get(
                key,
                lambda p=peer, f=file, j=job: one(j, p, data[j.net], f),
                valid=lambda r, f=file: settled(r, f),
            )
            here.append({**row, "net": net, "method": name, "ratio": ratio, "seed": seed})
            got = f"{row['top1']:.2%} at {row['macs_removed']:.1%}" if "top1" in row else row["refused"]
            common.say(f"{net} {ratio:g} {name}: {got}, {row['wall_s']:.0f} s")
        if args.bench and seed == 0:
            key = {"benchmark": "peers, time", "rows": [r["key"] for r in here if "file" in r]}
            found = cache.get(key, lambda p=path, h=here, o=out: {"speedup": timed(p, h, o, args.bench_s)})["speedup"]
            here = [{**r, **({"speedup": found[r["method"]]} if r["method"] in found else {})} for r in here]
        rows += here
    return rows


def cell(rows: list[dict[str, Any]]) -> str:
    done = [r for r in rows if "top1" in r]
    if not done:
        return "refused" if rows else ""
    removed = np.mean([r["macs_removed"] for r in done])
    text = f"{common.spread([r['top1'] for r in done], 1)} at −{removed:.1%}"
    speeds = [r["speedup"][0] for r in done if "speedup" in r]
    return text + "".join(f", {s:.2f}x" for s in speeds)


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = common.options(__doc__, "peers.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=common.FMNIST[:3], help=f"of {common.NETS} (the first three)")
    add("--ratios", type=common.numbers, default=RATIOS, help="shares of the MACs (0.5,0.65,0.8,0.9)")
    add("--seeds", type=int, default=1, help="calibration sets (1)")
    add("--samples", type=int, default=common.SAMPLES, help="images in each (512)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    common.add_cifar(parser)
    add("--only", type=common.words, default=(), metavar="WORDS", help="methods whose name has one of these in it")
    add("--method", type=method, action="append", help="another row of ours: [NAME:]criterion=l1,repair=refit")
    add("--out", type=Path, default=common.HERE / ".cache" / "peers", metavar="DIR", help="where the pruned files go")
    add("--no-bench", dest="bench", action="store_false", help="do not measure speed")
    add("--bench-s", type=float, default=60, help="seconds of timing for a net and ratio (60)")
    add("--iterations", type=int, default=100, help="steps of onnxsim's block fine-tuning (100)")
    args = parser.parse_args()
    begin, cache = time.perf_counter(), common.Cache(args.cache)
    args.found = common.find_models(args.nets, args.models, args.cifar)
    data = {net: common.data_of(net, args.data, args.cifar) for net in args.found}
    rows = run(args, data, cache)
    for net, path in args.found.items():
        head = [f"{net} ({common.baseline(path, data[net], cache):.2%})", *(f"−{r:.0%} MACs" for r in args.ratios)]
        lines = []
        for name in dict.fromkeys(r["method"] for r in rows):
            own = [r for r in rows if r["net"] == net and r["method"] == name]
            lines.append([name, *(cell([r for r in own if r["ratio"] == ratio]) for ratio in args.ratios)])
        print(common.table(head, lines) + "\n")
    scored = common.amount(data.values())
    print(f"Top-1 on {scored} test images, MACs removed, speed-up over the original (one thread, interleaved);")
    print(f"{args.samples} unlabelled training images, {args.seeds} seed(s), no training.")
    print(common.footer(time.perf_counter() - begin, **package_versions()))
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
