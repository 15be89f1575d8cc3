"""The settings: all that decides the outcome besides the model, the samples and the goal.

A setting is one field, and what is known of it stands there: its line of help, how it is read from text, what it may
be, which commands take it. The command line, the docs and the messages come from it. Names that are entries of other
tables (criteria, repairs, providers) are checked by asking these. Neither numpy nor onnx is imported before a setting
is given that needs to be checked against them: `--help` lists these options.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from onnxprune.errors import UsageError
from onnxprune.pipeline.finishing import FINISHES, finish_of, names_of
from onnxprune.pipeline.options import (
    Option,
    among,
    at_least,
    by_name,
    listed,
    numbers,
    option,
    regular,
    size_of,
    whole,
    width,
    words,
)
from onnxprune.pipeline.repairs import REPAIRS
from onnxprune.rewrite.repair.table import WITH_SAMPLES
from onnxprune.runtime.providers import PROVIDERS, check_providers, parse_provider_options

if TYPE_CHECKING:
    from onnxprune.plan import Value

METHODS = ("channels", "blocks", "rank", "merge", "resolution")
USUAL = ("channels", "blocks", "rank", "resolution")
"""The kinds of edits that are made unless others are asked for."""
RANKLESS = ("channels", "blocks")
"""The same where parameters or channels count."""
RECIPES = ("3c",)
"""What stands in place of methods: a fixed order of edits."""
KINDS = ("macs", "params", "channels", "latency")
"""What a cost may count."""
TRIALS = 40
"""Of a search, where nobody says how many."""
REMOVE, SAMPLES, REPAIR, TIMING, RESULT, GENERAL = (
    "what to remove", "samples", "repair", "timing", "result", "general"
)  # fmt: skip
"""What options are about."""
DECIDING = ("prune", "plan", "search")
MAKING = ("prune", "apply", "search")
OPENING = ("prune", "plan", "apply", "inspect", "verify", "sensitivity", "search", "train", "bench", "diff", "profile")
TIMED = ("prune", "plan", "apply", "search", "profile")
SPREAD = ("prune", "plan", "sensitivity", "search")
"""The commands whose trials may run elsewhere."""
PLACE = ("backend", "address", "store")
"""Where work is done and kept: nothing depends on it, and no plan remembers it."""
_spread = partial(option, part=GENERAL, commands=SPREAD, rare=True)
_deciding = partial(option, part=REMOVE, commands=DECIDING)
WIDTHS = "widths and their rounding are at least 1"


def _rounding(value: int | str) -> None:
    if value != "auto":
        at_least(1, WIDTHS)(value)  # type: ignore[arg-type]


def _methods(methods: Collection[str]) -> None:
    for method in methods:
        among("method", lambda: (*METHODS, *RECIPES))(method)
    if set(methods) & set(RECIPES) and len(methods) > 1:
        raise UsageError(f"--methods {','.join(methods)}: a recipe stands alone; {RECIPES[0]} or a list")
    if not methods:
        raise UsageError(f"no method given; any of {', '.join(METHODS)}")


def _criterion(name: str) -> None:
    from onnxprune.decide.criteria import named

    named(name).check_packages()


def _allocations() -> Collection[str]:
    from onnxprune.decide.allocation import ALLOCATIONS

    return ALLOCATIONS


def _repair(name: str) -> None:
    among("repair", lambda: REPAIRS)(name)
    if "torch" in REPAIRS[name].needs and find_spec("torch") is None:
        raise UsageError(f"--repair {name} needs torch - pip install torch")


_MEANING = r"[^=,]*(?:,\s*(?:axis|parts)=[^=]*)*"
"""What may stand behind NAME= in --output-kind, as a regular expression; names of outputs may hold = too."""


def _output_kinds(kinds: Mapping[str, str]) -> None:
    from onnxprune.measure.kinds.asked import check_kinds

    check_kinds(kinds)


def _weights(weights: Mapping[str, float]) -> None:
    from onnxprune.measure.kinds.asked import check_weights

    check_weights(weights)


def _backend(name: str) -> None:
    from onnxprune.elsewhere.backends import named

    named(name)


def _addressed(name: str | None, address: str) -> None:
    from onnxprune.elsewhere.backends import HERE, named

    named(name or HERE, address)


def _minutes(minutes: float) -> None:
    if not 0 < minutes < float("inf"):
        raise UsageError(f"distillation takes more than 0 minutes, not {minutes:g}")


def _repairs_in_words() -> str:
    """The names: the default, then the table from its end."""
    said = {WITH_SAMPLES: f"{WITH_SAMPLES} (with --calib)"}
    return ", ".join(said.get(name, name) for name in dict.fromkeys([WITH_SAMPLES, *reversed(REPAIRS)]))


def _finishes_in_words(setting: str) -> str:
    """The formats of the finished model that a setting knows."""
    return "; ".join(f"{f.name}: {f.help}" for f in FINISHES.values() if f.setting == setting)


@listed
@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the outcome besides the model, the samples and the goal."""

    of: str | None = _deciding(
        None, "WHAT", "of macs (default), params, channels or latency",
        'what counts: "macs", "params", "channels" or "latency" (of a run on this machine); None: MACs, or what serves '
        "the target",
        check=among("cost", lambda: KINDS),
    )  # fmt: skip
    criterion: str | None = _deciding(
        None, "NAME", "elimination (default with --calib), lasso, l1, l2, ...",
        'how channels are ranked; None: "elimination" when there are samples, else "activation"',
        check=_criterion,
    )  # fmt: skip
    allocation: str | None = _deciding(
        None, "NAME", "adaptive (default with --calib), uniform or global",
        '"adaptive", "global" or "uniform"; None: adaptive when there are samples, else uniform',
        check=among("allocation", _allocations), rare=True,
    )  # fmt: skip
    round_to: int | str = _deciding(
        "auto", "N", "widths are multiples of N (or auto)", 'widths are multiples of this, or "auto"',
        read=width, check=_rounding,
    )  # fmt: skip
    min_width: int = _deciding(
        1, "N", "no group gets narrower than N", "least width of a group",
        read=int, check=at_least(1, WIDTHS), rare=True,
    )  # fmt: skip
    include: str | None = _deciding(
        None, "REGEX", "cut only groups whose name or weights match",
        "regular expression on the names of groups and their weights: only those that match are cut",
        check=regular, commands=(*DECIDING, "train"),
    )  # fmt: skip
    exclude: str | None = _deciding(
        None, "REGEX", "never cut groups whose name or weights match",
        "regular expression on the names of groups and their weights: those that match stay whole",
        check=regular, commands=(*DECIDING, "train"),
    )  # fmt: skip
    methods: tuple[str, ...] | None = _deciding(
        None, "LIST", "some of channels, blocks, rank, resolution, merge; or 3c",
        'kinds of edits: "channels", "blocks" (whole residual blocks), "rank" (layers made of two), "resolution" (an '
        'image is seen smaller) and "merge" (blocks made one layer); all but the first need samples and the adaptive '
        'allocation, and are left out without them. '
        'Or ("3c",): spatial factorisation, channel factorisation and channels in turn. None: the first two, and ranks '
        "and resolution where MACs or times count; which are faster is timed where times count (two runs may differ), "
        "else reckoned",
        read=words, check=_methods,
    )  # fmt: skip
    keep_block: str | None = _deciding(
        None, "REGEX", "never drop blocks with a node whose name matches",
        "blocks with a node whose name matches this regular expression stay",
        check=regular, rare=True,
    )  # fmt: skip
    best_effort: bool = _deciding(
        False, "", "get as far as possible when R is out of reach",
        "take what can be reached instead of failing when the goal cannot",
    )  # fmt: skip
    prune_statistics: bool = _deciding(
        False, "", "cut under LayerNorm and the like too: not exact",
        "also cut axes over which a normalization takes its mean; the cut is then inexact",
        commands=(*DECIDING, "inspect", "sensitivity", "train"), rare=True,
    )  # fmt: skip
    input_value: Mapping[str, Sequence[float]] | None = option(
        None, "NAME=NUMBER", "an input that is the same for all samples: rate=16000 (repeatable)",
        "numbers for inputs that are the same for all samples, by name: one for the whole input, or one a place; "
        "samples need not have these inputs",
        read=by_name(numbers, "NAME=NUMBER, such as rate=16000"),
        repeated=True, part=SAMPLES, commands=OPENING, rare=True,
    )  # fmt: skip
    batch_axis: Mapping[str, int] | None = option(
        None, "NAME=AXIS", "the axis of an input that counts samples: state=1 (default: found)",
        "the axis that counts samples, by input name; of others it is the first, or that of a state whose second axis "
        "is as long as the first of other inputs",
        read=by_name(int, "NAME=AXIS, such as state=1", r"\d+"),
        repeated=True, part=SAMPLES, commands=OPENING, rare=True,
    )  # fmt: skip
    repair: str | None = option(
        None, "NAME", _repairs_in_words,
        "what mends the cut network (`onnxprune help repairs`); None: refit when there are samples, else merge",
        check=_repair, part=REPAIR, commands=MAKING,
    )  # fmt: skip
    epochs: int = option(
        40, "N", "passes over the samples (default 40)", "passes over the samples when distilling",
        read=int, check=at_least(1, "distillation takes at least one epoch"), part=REPAIR, commands=MAKING, rare=True,
    )  # fmt: skip
    minutes: float | None = option(
        None, "M", "distill for so long instead: as many steps as this machine takes in M minutes",
        "about how long distilling takes, instead of `epochs`: the number of steps, and so the outcome, is then this "
        "machine's",
        read=float, check=_minutes, part=REPAIR, commands=MAKING, rare=True,
    )  # fmt: skip
    augment: tuple[str, ...] | None = option(
        None, "LIST", "flip,shift=2,crop=0.5,mixup=0.5,cutmix; none (default what is harmless)",
        'how samples vary when distilling: "flip", "shift=2" (pixels), "crop=0.5", "mixup=0.5", "cutmix=0.5" (shares), '
        '"none"; None: images that get classes by what leaves the answers as they are, and by "cutmix"',
        read=words, part=REPAIR, commands=MAKING, rare=True,
    )  # fmt: skip
    recipe: str | None = option(
        None, "FILE", "file.py with labelled data and a loss",
        "a file.py with labelled data and a loss to train on beside the distillation, and to differentiate for "
        "criteria that go by gradients",
        part=REPAIR, commands=MAKING, rare=True,
    )  # fmt: skip
    quantize: str | None = option(
        None, "NAME", lambda: _finishes_in_words("quantize"),
        'the finished model in integers, "int8": calibrated, and rounded anew, on the samples; None: floats',
        check=among("format", lambda: names_of("quantize")), part=REPAIR, commands=MAKING, rare=True,
    )  # fmt: skip
    precision: str | None = option(
        None, "NAME", lambda: _finishes_in_words("precision"),
        'the finished model in other floats, "fp16"; inputs and outputs stay; None: as it was',
        check=among("format", lambda: names_of("precision")), part=REPAIR, commands=(*MAKING, "plan", "profile"),
        rare=True,
    )  # fmt: skip
    batch: int = option(
        1, "N", "samples in a run that is timed (default 1)", "samples in a run that is timed",
        read=int, check=at_least(1, "the batch is at least 1"), part=TIMING,
        commands=TIMED, rare=True,
    )  # fmt: skip
    providers: tuple[str, ...] = option(
        ("cpu",), "LIST", f"time on {', '.join(PROVIDERS).replace('cpu', 'cpu (default)')}",
        "what timed runs run on, short names as `bench` takes them; all else runs on the CPU, training apart",
        read=words, part=TIMING, commands=(*TIMED, "bench"), rare=True,
    )  # fmt: skip
    provider_options: Mapping[str, Mapping[str, object]] | None = option(
        None, "P.KEY=VALUE",
        "an option of ONNX Runtime's provider: cuda.use_tf32=0, cuda.prefer_nhwc=1, cuda.enable_cuda_graph=1, "
        "cuda.cudnn_conv_algo_search=HEURISTIC, ... (repeatable)",
        "options of theirs, by provider",
        flag="--provider-option", read=parse_provider_options, repeated=True, part=TIMING,
        commands=(*TIMED, "bench"), rare=True,
    )  # fmt: skip
    device: str | None = option(
        None, "FILE", "plan with the times of a device that `onnxprune profile` measured",
        "a file of `onnxprune profile`: the times of that device stand for those of this machine, and what is reached "
        "is predicted; with the targets of time, or where latency counts",
        part=TIMING, commands=("prune", "plan"), rare=True,
    )  # fmt: skip
    refine: tuple[str, ...] | None = option(
        None, "LIST", "correct what --device predicts by what `onnxprune bench --json` measured there",
        "files that `onnxprune bench --json` wrote on that device, of models that were planned with it: what is "
        "predicted is corrected by them",
        read=words, part=TIMING, commands=("prune",), rare=True,
    )  # fmt: skip
    metadata: bool = option(
        True, "", "leave out of the file how it was made",
        "whether the file says how it was made (`metadata_props` named onnxprune.*)",
        flag="--no-metadata", part=RESULT, commands=(*MAKING, "train"), rare=True,
    )  # fmt: skip
    output_kind: Mapping[str, str] | None = option(
        None, "NAME=KIND", "what an output is for, if guessed wrong: y=boxes, y=class-scores,axis=1, ... (repeatable)",
        "what outputs are for, by their names, where it is guessed wrong: {\"y\": \"boxes,axis=1\"}; "
        "`onnxprune help kinds` lists kinds, `onnxprune help outputs` says how parts of one are set",
        read=by_name(str, "NAME=KIND or NAME=KIND,axis=K,parts=..., such as y=boxes,axis=1", _MEANING),
        check=_output_kinds, repeated=True, part=GENERAL,
        commands=(*DECIDING, "apply", "inspect", "sensitivity", "verify", "train"), rare=True,
    )  # fmt: skip
    weight: Mapping[str, float] | None = option(
        None, "NAME=X", "the damage of an output, or of a part of one, counts X times (repeatable)",
        "how often the damage of an output, or of a part of one, counts, by its name; 1 where nothing is said",
        read=by_name(float, "NAME=X, such as y=2"), check=_weights, repeated=True, part=GENERAL,
        commands=(*DECIDING, "sensitivity", "train"), rare=True,
    )  # fmt: skip
    threads: int | None = option(
        None, "N", "cores to use (default: all; one for timed runs)",
        "ORT threads, and tasks side by side; None: as many as there are cores, one for timed runs",
        read=int, check=at_least(1, "the number of threads is at least 1"), part=GENERAL, commands=None,
        rare=True,
    )  # fmt: skip
    memory: int | None = option(
        None, "SIZE", "that a run may take: 4GB, 512MB (default: half of what is free)",
        "bytes that a run may take, about; what it keeps beyond that lies in temporary files (in TMPDIR), and the "
        "result is the same. None: half of what is free",
        read=size_of, check=at_least(1 << 28, "a run takes at least 256 MB"), part=GENERAL,
        commands=("prune", "plan", "apply", "sensitivity", "search"), rare=True,
    )  # fmt: skip
    backend: str | None = _spread(
        None, "NAME", "where trials run: threads (default), processes, dask, ray",
        'where work that does not depend on the place is done: "threads" (of this process, the default), "processes" '
        '(of this machine), "dask" or "ray" (workers anywhere); what is timed stays here, and the outcome is the same',
        check=_backend,
    )  # fmt: skip
    address: str | None = _spread(
        None, "URL", "of the scheduler: tcp://HOST:8786 for dask, HOST:6379 for ray",
        "the address of the scheduler of `backend`; None: it is started on this machine",
    )  # fmt: skip
    store: str | None = _spread(
        None, "FOLDER", "keep the results of trials there, and take those that are known",
        "a folder, or an address that fsspec knows, where results of trials are kept by what they depend on",
    )  # fmt: skip
    seed: int = option(
        0, "N", "for everything random (default 0)", "for everything random",
        read=whole, check=at_least(0, "the seed is at least 0"), part=GENERAL, commands=None,
        rare=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for f in fields(self):
            option, value = f.metadata["option"], getattr(self, f.name)
            if isinstance(value, str) and option.read in (words, size_of):  # "rank,blocks", "4GB"
                value = option.read(value)
                object.__setattr__(self, f.name, value)
            if value is not None:
                option.check(value)
        if self.address is not None:
            _addressed(self.backend, self.address)
        check_providers(self.providers, self.provider_options)
        finish_of(self)
        taken = () if self.repair is None else REPAIRS[self.repair].options
        given = {name for name in ("minutes", "augment", "recipe") if getattr(self, name)} - {*taken}
        if given - ({"recipe"} if self._by_gradients() else set()):
            raise UsageError("--minutes, --augment and --recipe are for training; give --repair distill")

    def _by_gradients(self) -> bool:
        """Whether a loss is differentiated to rank channels."""
        if self.criterion is None:
            return False
        from onnxprune.decide.criteria import CRITERIA

        return "gradients" in CRITERIA[self.criterion].needs

    def kinds(self) -> tuple[str, ...]:
        """The kinds of edits that are meant."""
        if self.methods is not None:
            return self.methods
        return RANKLESS if self.of in ("params", "channels") else USUAL

    def here(self) -> Settings:
        """The same, with all work done in one process and nothing kept."""
        return replace(self, backend=None, address=None, store=None)

    def decided(self, came_to: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """All settings by name, but those of repairs that were not asked for.

        Args:
            came_to: what those came to that were left open.
        """
        of_others = {o for r in REPAIRS.values() if r.name != self.repair for o in r.options}
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PLACE} | dict(came_to or {})
        idle = {f.name for f in fields(self) if f.name in of_others and getattr(self, f.name) == f.default}
        return {name: value for name, value in given.items() if value is not None and name not in idle}


OPTIONS: Mapping[str, Option] = {f.name: f.metadata["option"] for f in fields(Settings)}
"""All settings by name, in the order in which they are shown."""


def help_of(name: str) -> str:
    """The line of help of a setting, with the repairs that it is of."""
    line = OPTIONS[name].help
    owners = [r.name for r in REPAIRS.values() if name in r.options]
    said = line if isinstance(line, str) else line()
    return f"of --repair {' or '.join(owners)}: {said}" if owners else said


def flag_of(name: str) -> str:
    """How a setting is written on the command line."""
    return OPTIONS[name].flag or f"--{name.replace('_', '-')}"
