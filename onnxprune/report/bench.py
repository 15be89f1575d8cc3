"""A BenchResult for people: a table on the terminal, or CSV for a spreadsheet."""

import csv
import io
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.measure.latency import BenchResult, Comparison

COLOURS = {"faster": "green", "slower": "red", "no measurable change": "yellow"}
CSV_COLUMNS = (
    "name path min_ms p50_ms p90_ms p99_ms mean_ms throughput_per_s rounds runs_per_sample "
    "copy_in_ms copy_out_ms speedup low high noise_low noise_high verdict threads batch providers"
).split()


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
        table.add_row(Text(t.name), *times, speedup, outcome)
    return Group(table, Text("\n".join(_conditions(result)), "dim"))


def bench_csv(result: BenchResult) -> str:
    """One line a model, the baseline first with its comparison left empty; numbers unrounded."""
    compared = {c.candidate: c for c in result.comparisons}
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for t in result.timings:
        c = compared.get(t.name)
        row: dict[str, Any] = {**vars(t), **(_comparison_row(c) if c else {})}
        row |= {"threads": result.threads, "batch": result.batch}
        row["providers"] = " ".join(result.providers[t.name])
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


def _conditions(result: BenchResult) -> list[str]:
    providers = sorted({provider for used in result.providers.values() for provider in used[:1]})
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in result.shapes.items())
    threads = f"{result.threads} thread{'s' * (result.threads > 1)}"
    spinning = f", spinning {'on' if result.spinning else 'off'}" if result.threads > 1 else ""
    rounds = f"{result.rounds} rounds"
    if result.rounds < result.rounds_asked:
        rounds += f" of {result.rounds_asked} (time budget {result.time_budget_s:g} s)"
    noise = result.noise
    lines = [
        f"{' + '.join(providers)}, {threads}{spinning}, input {shapes}, {rounds}, {result.elapsed_s:.1f} s",
        f"same model against itself: {noise.median:.3f}x [{noise.low:.3f}, {noise.high:.3f}]",
    ]
    if result.comparisons:
        low, high = result.comparisons[0].noise
        lines[-1] += f"; a speed-up whose interval reaches into {low:.3f} to {high:.3f} is noise"
    if result.interrupted:
        samples = result.rounds * (len(result.timings) + 1)
        lines.append(f"{result.interrupted} of {samples} samples were interrupted by other processes")
    if result.load_start and result.load_end:
        lines.append(f"load average {result.load_start[0]:.2f} before, {result.load_end[0]:.2f} after")
    return lines


def _digits(x: float) -> str:
    """Four significant digits, never an exponent."""
    return f"{x:.0f}" if x >= 1000 else f"{x:.4g}" if x >= 0.001 else f"{x:.6f}"
