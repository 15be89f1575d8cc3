"""The methods that prune while training: one decorated function each, and all that is known of them by name.

    @training_method("mine", "what it does, in a line", rate=0.01, options={"pull": Option("how hard", least=0)})
    def mine(task, *, pull=1.0):
        from ... import ...
        return Prepared(...)

An option is a keyword of the function, with its default; the decorator says what it means and what it may be. From
the table come the command line, its help, the checks and the words about a name that is not there. A method gets a
`TrainingTask` and gives back a model that may be cut without loss, or one that is tuned behind the cut.

Only the standard library at the top, as `--help` must answer at once: what does the work is imported by the function
that needs it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UsageError, unknown

if TYPE_CHECKING:
    from onnxprune.pipeline.training_task import Prepared, TrainingTask

Prepare = Callable[..., "Prepared"]
"""(task, **options) -> the trained model and its plan."""


@dataclass(frozen=True)
class Option:
    """An option of a method's own. Its type is its default's.

    Attributes:
        help: what it means, in a line.
        least: a number that it is not below.
        default: the function's.
    """

    help: str
    least: float = -math.inf
    default: Any = None

    def check(self, name: str, value: Any) -> None:
        """Refuse what the option may not be.

        Raises:
            UsageError: the value is of another type, or too small.
        """
        kind = type(self.default)
        fits = type(value) in ((int, float) if kind is float else (kind,))
        if not fits or (kind in (int, float) and not self.least <= value < math.inf):
            raise UsageError(f"{name} is {self.wanted}, not {value!r}")

    @property
    def wanted(self) -> str:
        """What it may be, in words."""
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        kind = words.get(type(self.default), "text")
        return kind if self.least == -math.inf else f"{kind} from {self.least:g} up"

    @property
    def spelled(self) -> str:
        """The default as text, in the way that `read` takes it."""
        return str(self.default).lower() if isinstance(self.default, bool) else f"{self.default}"

    def read(self, name: str, text: str) -> Any:
        """The value that the text spells.

        Raises:
            UsageError: it spells none.
        """
        kind = type(self.default)
        try:
            value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise UsageError(f"{name} is {self.wanted}, not {text!r}") from None
        self.check(name, value)
        return value


@dataclass(frozen=True)
class TrainingMethod:
    """One entry of the table.

    Attributes:
        name: as `--method` takes it.
        help: what it does, in a line.
        prepare: what does it.
        rate: highest learning rate unless another is given: what its paper takes, or near it.
        edits: the kinds of edits that the sizes are decided for, of `Settings.methods`.
        cuts_first: whether the network is cut and refitted before it is trained.
        needs_samples: whether unlabelled samples decide something; the first of a recipe serve as well.
        options: its own, by name.
        takes_settings: whether other `Settings` are options too: they decide the plan.
    """

    name: str
    help: str
    prepare: Prepare
    rate: float
    edits: tuple[str, ...] = ("channels",)
    cuts_first: bool = False
    needs_samples: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    takes_settings: bool = False

    def option(self, name: str) -> Option:
        """The option of that name.

        Raises:
            UsageError: there is none.
        """
        if name in self.options:
            return self.options[name]
        if not self.options:
            raise UsageError(f"{self.name} has no options, so no {name!r}")
        raise unknown(f"option of {self.name}", name, self.options)


METHODS: dict[str, TrainingMethod] = {}
"""The table, in the order in which it is shown."""


def training_method(
    name: str,
    help: str,
    *,
    rate: float,
    edits: tuple[str, ...] = ("channels",),
    cuts_first: bool = False,
    needs_samples: bool = False,
    options: Mapping[str, Option] = MappingProxyType({}),
) -> Callable[[Prepare], Prepare]:
    """Enters a function of a task into the table.

    Args:
        name, help, rate, edits: as in `TrainingMethod`.
        cuts_first: as there; the refit then needs samples.
        needs_samples: as there.
        options: of every keyword of the function, what it means and may be. One with `**settings` takes `Settings`.

    Raises:
        ValueError: the keywords are others, or there is a method of that name.
    """

    def enter(prepare: Prepare) -> Prepare:
        keywords = list(inspect.signature(prepare).parameters.values())[1:]
        named = {p.name: p.default for p in keywords if p.kind is not p.VAR_KEYWORD}
        if named.keys() != options.keys():
            raise ValueError(f"{name}: options {sorted(options)}, but the function takes {sorted(named)}")
        if name in METHODS:
            raise ValueError(f"there is a method {name!r} already")
        own = {key: Option(o.help, o.least, named[key]) for key, o in options.items()}
        METHODS[name] = TrainingMethod(
            name, help, prepare, rate, edits, cuts_first, needs_samples or cuts_first, own, len(named) < len(keywords)
        )
        return prepare

    return enter


def method_named(name: str) -> TrainingMethod:
    """The entry of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


# ---- the table -------------------------------------------------------------------------------------------


@training_method(
    "csgd", "the channels of a cluster become the same, and one of them stays", rate=0.03,
    options={"strength": Option("ε, how hard a channel is drawn to the mean of its cluster", least=0)},
)  # fmt: skip
def csgd(task: TrainingTask, *, strength: float = 3.0) -> Prepared:
    from onnxprune.pipeline.training_task import Prepared
    from onnxprune.train.csgd import csgd

    start = task.decide()
    widths = {name: len(keep) for name, keep in start.keep().items()}
    merged = csgd(task.net, widths, task.loss, task.training, strength=strength, progress=task.report())
    words = f"the members of a cluster differ by at most {merged.spread:.1e} of their tensor's largest entry"
    return Prepared(merged.trained, merged.model, task.keeping(merged.model, merged.keep), words, start=start)


@training_method("gsm", "the channels that matter least die", rate=5e-3)
def gsm(task: TrainingTask) -> Prepared:
    from onnxprune.pipeline.training_task import Prepared, budget_of
    from onnxprune.train.gsm import gsm_channels

    budget = budget_of(task)
    sparse = gsm_channels(task.net.graph, budget, task.loss, task.training, progress=task.report())
    words = f"what was passive has shrunk to {sparse.left:.1e} of its tensor's largest entry"
    return Prepared(sparse.model, sparse.model, task.keeping(sparse.model, sparse.keep), words)


@training_method(
    "trp", "layers become of low rank, and are split", rate=0.01, edits=("rank",), needs_samples=True,
    options={
        "every": Option("steps between truncations to that rank", least=1),
        "nuclear": Option("λ, how hard the nuclear norm is pulled down", least=0),
        "project": Option("false: plain training to compare with, truncated once at the end"),
    },
)  # fmt: skip
def trp(task: TrainingTask, *, every: int = 20, nuclear: float = 3e-4, project: bool = True) -> Prepared:
    from onnxprune.pipeline.training_task import Prepared
    from onnxprune.train.trp import trp

    start = task.decide()
    edits = start.factorized()
    low = trp(
        task.net.graph, edits, task.loss, task.training,
        every=every, nuclear=nuclear, project=project, progress=task.report(),
    )  # fmt: skip
    words = f"the last truncation took at most {low.lost:.1e} of a layer's energy"
    return Prepared(low.trained, low.model, task.plan(low.model, edits), words, start=start)


GATED = 0.25
"""Share of the steps in which gates are learned; in the rest the cut network is trained."""


@training_method(
    "gates", "channels and whole residual blocks go, in proportions that are learned", rate=0.03, cuts_first=True
)
def gates(task: TrainingTask) -> Prepared:
    from dataclasses import replace

    from onnxprune.decide.blocks import find_blocks
    from onnxprune.pipeline.block_trials import drop_of
    from onnxprune.pipeline.training_task import budget_of, most_needed, tuned
    from onnxprune.train.gates import Branch, gates, scales

    net, gated = task.net, max(1, int(GATED * task.settings.steps))
    lasts = {b: scales(net.graph, (b.add, b.branch), b.nodes) for b in find_blocks(net)}
    blocks = [b for b, last in lasts.items() if last]
    budget = budget_of(task, blocks)
    branches = [Branch(b.add, lasts[b], budget.removed({}, frozenset({b.add}))) for b in blocks]
    how = replace(task.training, steps=gated)
    found = gates(net.graph, budget, branches, task.loss, how, progress=task.report())
    plan = task.keeping(net.model, most_needed(task, found.keep))
    drops = tuple(drop_of(b, net.channels) for b in blocks if b.add in found.dropped)
    words = f"{len(found.dropped)} of {len(blocks)} blocks shut"
    return tuned(task, replace(plan, edits=(*plan.edits, *drops)), gated, words)


@training_method("tune", "the plan of `prune`, then plain fine-tuning", rate=0.03, cuts_first=True)
def tune(task: TrainingTask, **settings: Any) -> Prepared:
    from onnxprune.pipeline.training_task import tuned

    return tuned(task, task.decide(**settings), 0, "cut and refitted before")
