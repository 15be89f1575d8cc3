"""A BenchResult, or one a batch size or shape, for people: tables on the terminal, or CSV for a spreadsheet."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.report.terminal import plain
from onnxprune.runtime.providers import spread_in_words
from onnxprune.timing.bench_result import BenchResult, Comparison

COLOURS = {"faster": "green", "slower": "red", "no measurable change": "yellow"}
SHOWN = ("cudnn_conv_algo_search", "use_tf32", "prefer_nhwc", "enable_cuda_graph")
"""Options of CUDA that the table names."""
CSV_COLUMNS = (
    "name path min_ms p50_ms p90_ms p99_ms mean_ms throughput_per_s rounds runs_per_sample "
    "copy_in_ms copy_out_ms speedup low high noise_low noise_high verdict threads batch inputs providers nodes"
).split()


def heading(result: BenchResult) -> str:
    """What a case is called beside others: its batch and the shapes of its inputs."""
    return f"batch {result.batch}, input {_inputs(result)}"


def render_all(results: Sequence[BenchResult]) -> RenderableType:
    """A table a case; with a heading where there are several."""
    if len(results) == 1:
        return render(results[0])
    parts: list[RenderableType] = []
    for result in results:
        parts += [Text(heading(result), "bold"), render(result), Text()]
    return Group(*parts[:-1])


def render(result: BenchResult) -> RenderableType:
    """One row a model, and below it under what conditions and how far the noise reaches."""
    compared = {c.candidate: c for c in result.comparisons}
    copies = any(t.copy_in_ms is not None for t in result.timings)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for title in (
        "min ms",
        "p50",
        "p90",
        "p99",
        "per s",
        *(("in ms", "out ms") if copies else ()),
        "speed-up",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict")
    for t in result.timings:
        times = [_digits(x) for x in (t.min_ms, t.p50_ms, t.p90_ms, t.p99_ms, t.throughput_per_s)]
        if copies:
            times += ["" if x is None else _digits(x) for x in (t.copy_in_ms, t.copy_out_ms)]
        c = compared.get(t.name)
        speedup = Text("1") if c is None else Text(f"{c.speedup:.3f}x [{c.low:.3f}, {c.high:.3f}]")
        outcome = Text("baseline", "dim") if c is None else Text(c.verdict, COLOURS[c.verdict])
        table.add_row(Text(plain(t.name)), *times, speedup, outcome)
    return Group(table, Text("\n".join(conditions(result)), "dim"))


def bench_csv(*results: BenchResult) -> str:
    """One line a model and case, the baseline first with its comparison left empty; numbers unrounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for result in results:
        compared = {c.candidate: c for c in result.comparisons}
        for t in result.timings:
            c = compared.get(t.name)
            row: dict[str, Any] = {**vars(t), **(_comparison_row(c) if c else {})}
            row |= {"threads": result.threads, "batch": result.batch, "inputs": _inputs(result)}
            row["providers"] = " ".join(result.providers[t.name])
            row["nodes"] = spread_in_words(result.assignment[t.name] or {})
            writer.writerow(row)
    return out.getvalue()


def _comparison_row(c: Comparison) -> dict[str, Any]:
    return {
        "speedup": c.speedup,
        "low": c.low,
        "high": c.high,
        "noise_low": c.noise[0],
        "noise_high": c.noise[1],
        "verdict": c.verdict,
    }


def conditions(result: BenchResult) -> list[str]:
    """How it was measured, and how far the noise reaches: a line each."""
    providers = sorted({provider for used in result.providers.values() for provider in used[:1]})
    ran_on = " + ".join([*providers, *result.machine["accelerators"]])
    threads = f"{result.threads} thread{'s' * (result.threads > 1)}"
    spinning = f", spinning {'on' if result.spinning else 'off'}" if result.threads > 1 else ""
    rounds = f"{result.rounds} rounds"
    if result.rounds < result.rounds_asked:
        rounds += f" of {result.rounds_asked} (time budget {result.time_budget_s:g} s)"
    noise = result.noise
    lines = [
        f"{ran_on}, {threads}{spinning}, input {_inputs(result)}, {rounds}, {result.elapsed_s:.1f} s",
        f"same model against itself: {noise.median:.3f}x [{noise.low:.3f}, {noise.high:.3f}]",
    ]
    if result.comparisons:
        low, high = result.comparisons[0].noise
        lines[-1] += f"; a speed-up whose interval reaches into {low:.3f} to {high:.3f} is noise"
    if result.part:
        lines.append(f"not all of it runs: {plain(result.part)}")
    for name, spread in result.assignment.items():
        if spread and len(spread) > 1:  # what fell to another provider is part of the time
            lines.append(f"nodes of {plain(name)}: {spread_in_words(spread)}")
    for provider, set_ in _options(result).items():
        lines.append(f"options of {provider}: {', '.join(f'{k}={v}' for k, v in set_.items())}")
    if result.interrupted:
        samples = result.rounds * (len(result.timings) + 1)
        words = "; there, the time on the core counts" if result.by_core_time else ""
        lines.append(f"{result.interrupted} of {samples} samples were interrupted by other processes{words}")
    if result.load_start and result.load_end:
        lines.append(f"load average {result.load_start[0]:.2f} before, {result.load_end[0]:.2f} after")
    return lines


def _inputs(result: BenchResult) -> str:
    return ", ".join(f"{plain(name)} {'x'.join(map(str, shape))}" for name, shape in result.shapes.items())


def _options(result: BenchResult) -> dict[str, dict[str, str]]:
    """Of each provider, what most changes the time; all of them are in the JSON."""
    found: dict[str, dict[str, str]] = {}
    for by_provider in result.provider_options.values():
        for provider, options in by_provider.items():
            shown = {key: options[key] for key in SHOWN if key in options}
            if shown:
                found[provider] = shown
    return found


def _digits(x: float) -> str:
    """Four significant digits, never an exponent."""
    return f"{x:.0f}" if x >= 1000 else f"{x:.4g}" if x >= 0.001 else f"{x:.6f}"
