"""What a person reads: one screen about a result, a table, and how far the work is.

Only the standard library at the top: the command line imports this before it knows what it is asked.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from onnxprune.measure.fidelity import Fidelity
    from onnxprune.measure.surgery import Surgery
    from onnxprune.report.forms import Stays, Told
    from onnxprune.report.refused import Refused
    from onnxprune.report.result import Result
    from onnxprune.timing.bench_result import BenchResult


PARTS = 8
"""Most parts of the outputs that are listed."""
Values = Mapping[str, Any]


def plain(text: str) -> str:
    """A name from a model, safe to print: control characters shown, not obeyed."""
    return "".join(c if unicodedata.category(c)[0] != "C" else f"\\x{ord(c):02x}" for c in text)


def si(value: float) -> str:
    """A count with a unit letter: 31.2 M."""
    text = f"{value:.0f}"
    for limit, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if float(text.split()[0]) < 1000:
            break
        text = f"{value / limit:.2f} {letter}"
    return text


def costs(before: Values, after: Values, *, title: str = "pruned") -> str:
    """What a model costs before and after, as `Cost` has it, a line each; what cannot be counted is named."""
    rows = [("", "original", title, "change"), *cost_rows(before, after)]
    lines = [f"{r[0]:<13}{r[1]:>12}{r[2]:>12}{r[3]:>10}" for r in rows]
    if before["uncounted"]:
        lines.append(f"{'not counted':<13}{not_counted(before)}")
    return "\n".join(lines) + "\n"


def cost_rows(before: Values, after: Values) -> list[tuple[str, str, str, str]]:
    """The same as cells: what, original, pruned, change."""
    rows = []
    for name, key, unit in (("MACs", "macs", ""), ("parameters", "params", ""), ("file size", "bytes", "B")):
        if key in after:
            rows.append((name, f"{si(before[key])}{unit}", f"{si(after[key])}{unit}", change(before[key], after[key])))
    if before.get("latency_ms") and after.get("latency_ms"):
        a, b = before["latency_ms"], after["latency_ms"]
        rows.append(("latency p50", f"{a:.3f} ms", f"{b:.3f} ms", change(a, b)))
    return rows


def not_counted(cost: Values) -> str:
    """The nodes whose multiply-accumulates are not known, and what they take, of a `Cost` as plain values."""
    count = sum(kind["nodes"] for kind in cost["uncounted"])
    ops = ", ".join(plain(kind["op"]) for kind in cost["uncounted"])
    share = cost["uncounted_time"]
    took = "a share of the time that could not be measured" if share is None else f"{share:.1%} of the time"
    return f"{count} node{'s' * (count > 1)} ({ops}) with {took} {'are' if count > 1 else 'is'} not counted"


def change(before: float, after: float) -> str:
    """How much went, in percent."""
    return f"{(after / before - 1) * 100:+z.1f}%" if before else ""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str,
    *,
    most: int | None = None,
    width: int | None = None,
) -> str:
    """Aligned columns, two blanks apart.

    Args:
        head: titles.
        rows: cells, safe to print.
        align: "<" or ">" for each column.
        most: show so many rows and say how many there are more.
        width: columns of the terminal; the first column gives way when it is too narrow.
    """
    shown = rows if most is None or len(rows) <= most else rows[:most]
    sizes = [max(len(r[k]) for r in (head, *shown)) for k in range(len(head))]
    if width is not None:
        sizes[0] = max(12, min(sizes[0], width - sum(sizes[1:]) - 2 * (len(head) - 1)))
    lines = []
    for row in (head, *shown):
        cells = [_shortened(row[0], sizes[0]), *row[1:]]
        lines.append("  ".join(f"{c:{a}{n}}" for c, a, n in zip(cells, align, sizes, strict=True)).rstrip())
    if len(shown) < len(rows):
        lines.append(f"… and {len(rows) - len(shown)} more (use -v)")
    return "\n".join(lines) + "\n"


def _shortened(text: str, size: int) -> str:
    """`text` in `size` columns, its middle left out: both ends of a tensor's name matter."""
    if len(text) <= size:
        return text
    tail = (size - 1) * 2 // 3
    return f"{text[: size - 1 - tail]}…{text[len(text) - tail :]}"


def sweep_table(results: Sequence[Result], files: Sequence[str], width: int | None = None) -> str:
    """Several results of one model, a line each: what went, how close the outputs are, how fast it is."""
    from onnxprune.report.metrics import asked_metric

    rows, asked = [], asked_metric([result.fidelity for result in results])
    for result, file in zip(results, files, strict=True):
        f, timed = result.fidelity, result.latency
        rows.append(
            (
                plain(file),
                f"{result.macs_removed:.1%}",
                change(result.before.params, result.after.params),
                result.verdict or "",
                "" if asked is None or f is None else asked.shown(f),
                "" if f is None or f.top1 is None else f"{f.top1:.1%}",
                "" if f is None or f.cosine is None else f"{f.cosine:.4f}",
                "" if f is None or f.sqnr_db is None else f"{f.sqnr_db:.1f} dB",
                "" if timed is None else f"{timed.comparisons[0].speedup:.2f}x",
            )
        )
    title = "" if asked is None else asked.title
    head = ("file", "MACs cut", "parameters", "verdict", title, "top-1 agreement", "cosine", "SQNR", "speed-up")
    filled = [k for k in range(len(head)) if any(r[k] for r in rows)]
    cells = [[r[k] for k in filled] for r in rows]
    return table([head[k] for k in filled], cells, "<" + ">" * (len(filled) - 1), width=width)


COLOURS = {"kept": "32", "changed": "33", "destroyed": "1;31"}
"""Of a verdict on a terminal."""


class Said(NamedTuple):
    """A sentence about a result: what it is about, in a word or two, and what is said."""

    about: str
    text: str


def fidelity_said(fidelity: Fidelity, samples: str) -> list[Said]:
    """The verdict and what it goes by, the figures, and those of each part where the outputs have several.

    Args:
        fidelity: what was found.
        samples: what kind of samples it was found on, in words.
    """
    figures = Said("fidelity", f"{fidelity.in_words()} on {fidelity.samples} {samples}")
    if fidelity.verdict is None:
        return [figures]
    several = fidelity.parts if len(fidelity.parts) > 1 else ()
    parts = [Said("", f"{plain(part.name)}: {part.in_words()}") for part in several[:PARTS]]
    parts += [Said("", f"{plain(part.name)}: {words}") for part in fidelity.parts if (words := part.one_sided())]
    return [Said("verdict", f"{fidelity.verdict}: {plain(fidelity.why)}"), figures, *parts]


def said_lines(said: Iterable[Said], *, colour: bool = False) -> list[str]:
    """Sentences as lines; `colour`: whether the verdict may be coloured."""
    return [f"{about:<13}{_coloured(text) if colour and about == 'verdict' else text}" for about, text in said]


def _coloured(text: str) -> str:
    word, colon, why = text.partition(":")
    return f"\x1b[{COLOURS[word]}m{word}\x1b[0m{colon}{why}" if word in COLOURS else text


def summary(
    result: Result, *, warnings: bool = True, verbose: bool = False, width: int = 100, colour: bool = False
) -> str:
    """The summary of a pruning run, about twenty lines; `verbose`: also what was refused, by reason."""
    from onnxprune.report.forms import Told
    from onnxprune.report.reading import read

    told: Told = read(Told, result.told())
    lines = [*costs(asdict(result.before), asdict(result.after)).splitlines(), ""]
    said = [s for s in sentences(told) if verbose or not s.about.startswith("not ")]
    lines += said_lines([*said, *(Said("warning", plain(w)) for w in result.warnings if warnings)], colour=colour)
    return "\n".join(hung(line, width) for line in lines) + "\n"


def sentences(told: Told) -> list[Said]:
    """All that is said of a result besides its costs and warnings, to whoever reads it: a line each on the terminal and
    on the page."""
    found = [("asked", asked_words(told["settings"])), ("before", earlier_words(told.get("earlier", ())))]
    timed = told["latency"]
    if timed is not None:
        c = timed.comparisons[0]
        found.append(("speed-up", f"{c.speedup:.2f}x [{c.low:.2f}, {c.high:.2f}], {c.verdict} ({_timed(timed)})"))
    found.append(("surgery", surgery_words(told["surgery"], len(told["inexact"]))))
    f = told["fidelity"]
    if f is not None:
        found += fidelity_said(f, "held-out samples" if f.held_out else "samples that were also fitted on")
    smaller = "; ".join(e.in_words() for e in told.get("resampled", ()))
    found.append(("seen", f"{plain(smaller)}: a Resize comes first" if smaller else ""))
    cut = sum(g["after"] < g["before"] for g in told["groups"])
    found.append(("groups", f"{cut} of {len(told['groups'])} cut; repair: {told['settings'].get('repair', 'none')}"))
    found.append(("blocks", _some("{} dropped", told["blocks"])))
    found.append(("merged", _some("{} blocks made one layer", [e.block for e in told.get("merged", ())])))
    found.append(("fused", _some("{} runs of layers made one, exactly", [e.node for e in told.get("fused", ())])))
    found.append(("low rank", _some("{} layers made of two", [e.node for e in told["factorized"]])))
    by = {"trained": "trained", "device": "predicted"}
    label = next((word for name, word in by.items() if told["settings"].get(name)), "measured")
    found += [(label, plain(note)) for note in told["notes"]]
    found += [("training", plain(f"{t['step']}: {t['words']}")) for t in told.get("training", ())]
    found.append(("kept whole", "; ".join(f"{plain(r)} ({n})" for r, n in _common(told["pinned"]))))
    found += _refused(told.get("refused", ()))
    return [Said(about, text) for about, text in found if text]


OF = {"macs": "the MACs", "params": "the parameters", "channels": "the channels", "latency": "the time"}


def asked_words(settings: Mapping[str, Any]) -> str:
    """What was asked for, as the command line spells it; empty where nobody knows."""
    ratio, target, of = settings.get("ratio"), settings.get("target"), str(settings.get("of") or "macs")
    text = f"--ratio {_number(ratio)} of {OF.get(of, of)}" if ratio is not None else ""
    if isinstance(target, Mapping):
        text = ", ".join(f"--{kind.replace('_', '-')} {_number(value)}" for kind, value in target.items())
    text = "--lossless" if settings.get("lossless") else text
    text += f", in {settings['metric']}" if settings.get("metric") else ""
    text += f", by {settings['trained']} in {settings.get('steps')} steps" if settings.get("trained") else ""
    return plain(text)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def earlier_words(passes: Sequence[Mapping[str, str]]) -> str:
    """That the original has been pruned before, how often and how; empty where it has not."""
    if not passes:
        return ""
    last, times = passes[-1], f"{len(passes)} times" if len(passes) > 1 else "once"
    how = f"{'last ' if len(passes) > 1 else ''}{last.get('asked') or 'with other settings'}"
    return f"pruned {times} already ({plain(how)}); all that is said here is against that file"


def _some(words: str, names: Sequence[str], most: int = 4) -> str:
    """How many, and the first of them; empty where there are none."""
    once = list(dict.fromkeys(names))
    more = f" and {len(once) - most} more" if len(once) > most else ""
    return f"{words.format(len(once))}: {', '.join(map(plain, once[:most]))}{more}" if once else ""


def _common(pinned: Iterable[Stays], most: int = 3) -> list[tuple[str, int]]:
    """The most common reasons, and how many channels each keeps."""
    count: dict[str, int] = {}
    for p in pinned:
        count[p.reason] = count.get(p.reason, 0) + p.count
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))[:most]


def by_reason(refused: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], list[str]]:
    """(what could not be done, why) -> the nodes; from (what, why, node)."""
    found: dict[tuple[str, str], list[str]] = {}
    for what, reason, node in refused:
        found.setdefault((what, reason), []).append(node)
    return found


def _refused(refused: Sequence[Refused]) -> list[tuple[str, str]]:
    """What could not be done to how many layers, a line a reason."""
    found = by_reason((r.what, r.reason, r.node) for r in refused)
    return [
        (
            f"not {what}",
            f"{plain(reason)} ({len(nodes)} layer{'s' * (len(nodes) > 1)}: {plain(nodes[0])}"
            f"{', …' * (len(nodes) > 1)})",
        )
        for (what, reason), nodes in found.items()
    ]


def _timed(latency: BenchResult) -> str:
    """How latency was measured."""
    provider = latency.providers[latency.timings[0].name][0].removesuffix("ExecutionProvider")
    batch = f", batch {latency.batch}" if latency.batch > 1 else ""
    threads = f"{latency.threads} thread{'s' * (latency.threads > 1)}"
    part = ", of the part that runs" if latency.part else ""
    return f"{latency.rounds} interleaved rounds, {threads}, {provider}{batch}{part}"


def surgery_words(surgery: Surgery, inexact: int = 0) -> str:
    """What was compared, and how far apart it was; `inexact` nodes change on purpose."""
    if inexact and not surgery.exact:
        return f"not exact, as asked for: {inexact} statistics over channels change, error {surgery.worst:.1e}"
    exact = "exact" if surgery.exact else "NOT exact"
    text = f"{exact}: worst error {surgery.worst:.1e} against the {surgery.against}"
    if surgery.rounding:
        text += f" (rounding alone: {surgery.rounding:.1e})"
    if surgery.turned:
        text += (
            f"; {len(surgery.turned)} outputs compared with the original's decisions at {len(surgery.decisions)} "
            f"nodes such as {plain(surgery.decisions[0])}, which rounding turns over"
        )
    if surgery.inner:
        text += f"; compared at {', '.join(map(plain, surgery.inner))}: behind it rounding is blown up"
    return text


def hung(line: str, width: int) -> str:
    """A line as several of that width, the text behind its first word or two in a column."""
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * 13,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=len(line) > width,
    )
