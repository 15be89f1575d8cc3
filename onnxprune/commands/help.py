"""`onnxprune help TOPIC`: the names that an option takes, from the tables that hold them, and the documents."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping

from onnxprune.commands.common import as_json, print_out
from onnxprune.commands.documents import document, laid_out
from onnxprune.commands.options import Parser, add_words
from onnxprune.errors import EXITS, unknown
from onnxprune.report.status import Status
from onnxprune.report.terminal import plain
from onnxprune.report.wrapping import filled, room

Rows = Iterable[tuple[str, str]]
"""Names, each with what it is."""


def _criteria() -> Rows:
    from onnxprune.decide.criteria import BY_DEFAULT, CRITERIA

    for entry in CRITERIA.values():
        notes = [f"default {'with' if sampled else 'without'} --calib" for sampled in (True, False)
                 if BY_DEFAULT[sampled] == entry.name]  # fmt: skip
        notes += ["needs samples"] * entry.needs_samples + _packages(entry.needs)
        yield entry.name, _noted(entry.help, notes)


def _packages(needs: Iterable[str]) -> list[str]:
    from onnxprune.decide.criteria import NEEDS

    return [f"needs {package.name}" for need in sorted(needs) if (package := NEEDS[need].package)]


def _repairs() -> Rows:
    from onnxprune.pipeline.repairs import REPAIRS

    return ((r.name, _noted(r.help, ["needs samples"] * ("samples" in r.needs))) for r in REPAIRS.values())


def _targets() -> Rows:
    from onnxprune.pipeline.goals import TARGETS

    return ((f"{t.option} {t.metavar}", t.help) for t in TARGETS.values())


def _training() -> Rows:
    from onnxprune.pipeline.training_methods import METHODS

    return ((m.name, m.help) for m in METHODS.values())


def _providers() -> Rows:
    from onnxprune.runtime.providers import PROVIDERS

    return ((alias, provider.name) for alias, provider in PROVIDERS.items())


def _backends() -> Rows:
    from onnxprune.elsewhere.backends import BACKENDS, HERE

    yield HERE, "threads of this process; the default"
    for entry in BACKENDS.values():
        address = [f"address {entry.address}"] if entry.address else []
        yield entry.name, _noted(entry.help, [*address, f"needs {entry.package}"])


def _calibration() -> Rows:
    from onnxprune.samples.sources import SOURCES

    for entry in SOURCES:
        name = f"a folder of {entry.words}" if entry.place == "folder" else entry.words or entry.read.__name__
        yield name, _noted((entry.read.__doc__ or "").strip().split("\n")[0], [entry.extra[1]] if entry.extra else [])


def _settings() -> Rows:
    from onnxprune.pipeline.settings import OPTIONS

    return ((name, option.doc) for name, option in OPTIONS.items())


def _kinds() -> Rows:
    from onnxprune.measure.kinds.asked import listed

    yield from listed()
    parts = (
        "parts of a joint output: stretches of an axis (the last one where none is named), the stop not in them; a "
        "part without a kind is of the first one, one without a name is called as numpy takes it, and what they leave "
        "over is told as usual"
    )
    yield "KIND,axis=K,parts=NAME:START-STOP:KIND,...", parts


def _figures() -> Rows:
    from onnxprune.measure.figures import FIGURES

    return ((name, f"{figure.title}: {figure.help}") for name, figure in FIGURES.items())


def _none() -> Rows:
    """Of a topic that is a document alone."""
    return ()


def _exits() -> Rows:
    return ((str(code), text) for code, text in EXITS.items())


TOPICS: Mapping[str, tuple[str, Callable[[], Rows]]] = {
    "start": ("from an exporter to a file in production", _none),
    "samples": ("which samples, how many, and how they are read", _none),
    "choosing": ("how much to remove, by what, and what pruning cannot do", _none),
    "outputs": ("what is said of the outputs: fidelity, verdict, gates", _none),
    "after": ("int8, float16, other runtimes, plans for other models, pipelines", _none),
    "devices": ("CPU, GPU and other providers; timing", _none),
    "machines": ("trials on several machines, a search over settings", _none),
    "python": ("every public name, with an example", _none),
    "methods": ("the algorithms: formulas, sources, what is ours", _none),
    "figures": ("what was measured, and the commands that measure it", _none),
    "inside": ("how it works, and how to add to it", _none),
    "errors": ("exit codes, and what messages mean", _none),
    "changes": ("what is new", _none),
    "criteria": ("what --criterion takes", _criteria),
    "repairs": ("what --repair takes", _repairs),
    "targets": ("what may be asked for instead of a ratio", _targets),
    "training": ("what `onnxprune train --method` takes; recipes", _training),
    "providers": ("what --providers takes", _providers),
    "backends": ("what --backend takes", _backends),
    "calibration": ("what --calib and `calibration` take", _calibration),
    "kinds": ("what outputs are for: what --output-kind takes", _kinds),
    "metrics": ("figures of outputs by name: what --min and --max-drop take", _figures),
    "settings": ("the keywords of onnxprune.prune and Settings", _settings),
    "exits": ("what exit codes mean", _exits),
}


def _noted(text: str, notes: list[str]) -> str:
    return "; ".join([text.removesuffix("."), *notes])


def parser() -> Parser:
    made = Parser("help", "help [TOPIC] [options]", f"Documents, and what options take.\n\n{_listed(_topics())}")
    made.add_argument("topic", nargs="?", metavar="TOPIC", help=argparse.SUPPRESS)
    add = made.add_argument_group("general").add_argument
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_words(add)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    if args.topic is not None and args.topic not in TOPICS:
        raise unknown("topic", args.topic, TOPICS)
    rows = list(_topics() if args.topic is None else TOPICS[args.topic][1]())
    text = document(args.topic or "")
    if args.json:
        content = {"schema": 1, "kind": "onnxprune help", "topic": args.topic, "entries": dict(rows)}
        print_out(as_json(content | ({"text": text} if text else {}), None))
        return
    listed = [_listed(rows)] if rows else []
    print_out("\n".join([*listed, *([laid_out(text, room())] if text else [])]))


def _topics() -> Rows:
    return ((name, about) for name, (about, _) in TOPICS.items())


def _listed(rows: Rows) -> str:
    """Lines, the names in a column; a long name stands above what it is."""
    found = [(plain(name), plain(text)) for name, text in rows]
    width = room()
    size = min(max(len(name) for name, _ in found), width // 3)
    lines = []
    for name, text in found:
        head, rest = f"  {name:<{size}}  ", " " * (size + 4)
        if len(name) > size:
            lines.append(head.rstrip())
            head = rest
        lines += filled(text, width, head, rest)
    return "\n".join(lines) + "\n"
