"""A search over settings: Optuna proposes, trials are planned, looked at, carried out and measured.

Trials live in a storage (a journal file, or a database), and whoever points at it takes part. A trial counts once it
is finished, or ended early; that of a process that was killed does not, and is made again. What a trial's number says
is enough to know whether it is one too many: so there are never more than were asked for, and nobody is in charge.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune import __version__
from onnxprune.elsewhere.tasks import digest_of
from onnxprune.errors import FileError, PruneError, UsageError, one_line
from onnxprune.measure.metric import Metric
from onnxprune.pipeline.apply import apply_plan
from onnxprune.pipeline.asked import Progress
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.reach import metric_of, named
from onnxprune.pipeline.settings import USUAL, Settings
from onnxprune.plan import PrunePlan
from onnxprune.protobuf.serialize import byte_size, serialized
from onnxprune.report.searched import Objective, Searched, Trial

if TYPE_CHECKING:
    import optuna

RATIOS = (0.1, 0.8)
"""Shares of the cost to remove: least and most."""
DEFAULTS = (0.3, 0.5, 0.7)
"""Ratios at which the default is tried first."""
STARTS = 10
"""Trials before the sampler goes by what is known."""
CLEARLY = 2.0
"""Ended early: what does so many times the damage of a finished trial that is no larger and costs no more."""
COSTS = {"macs": "MACs", "params": "parameters", "channels": "channels", "latency": "time"}
"""What is left of the cost, in words."""
PLANNERS = 4
"""Planners that are kept: another ratio is quick to plan for."""
SILENT = timedelta(minutes=1)
"""A running trial that has not said for so long who makes it has lost whoever that was."""


@dataclass(frozen=True)
class Dimension:
    """A setting that is searched over.

    Attributes:
        name: of the setting.
        choices: what it may be; the first is the default.
        where: (what was chosen so far, settings) -> whether there is a choice.
    """

    name: str
    choices: tuple[Any, ...]
    where: Callable[[Mapping[str, Any], Settings], bool] = lambda chosen, settings: True


def _adaptive(chosen: Mapping[str, Any], settings: Settings) -> bool:
    return (chosen.get("allocation") or settings.allocation or "adaptive") == "adaptive"


SPACE: tuple[Dimension, ...] = (
    Dimension("allocation", ("adaptive", "uniform", "global")),
    Dimension("criterion", ("elimination", "similarity", "activation", "l1")),
    Dimension(
        "methods",
        (",".join(USUAL), "channels,blocks,rank", "channels,blocks", "channels,rank", "channels"),
        _adaptive,
    ),
    Dimension("round_to", ("auto", 1, 4, 8)),
)
"""The one table of what is searched over, besides the ratio; what the settings say already is left as it is."""


def check_storage(address: str | None) -> None:
    """Refuse what cannot be a storage, as `storage_of`; nothing is opened or made."""
    if find_spec("optuna") is None:
        raise UsageError("a search needs optuna - pip install optuna")
    if address is not None and "://" not in address and not Path(address).parent.is_dir():
        raise FileError(one_line(f"{address}: there is no folder {Path(address).parent}"))


def storage_of(address: str | None) -> optuna.storages.BaseStorage:
    """Where trials are kept.

    Args:
        address: of a database (sqlite:///..., mysql://...), else a journal file; None: in memory.

    Raises:
        UsageError: optuna is not installed, or does not know the address.
        FileError: the file cannot be read or written.
    """
    check_storage(address)
    import optuna
    from optuna.storages.journal import JournalFileBackend

    from onnxprune.pipeline.journal import Lock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if address is None:
        return optuna.storages.InMemoryStorage()
    try:
        if "://" in address:
            return optuna.storages.RDBStorage(address)
        return optuna.storages.JournalStorage(JournalFileBackend(address, lock_obj=Lock(address)))
    except Exception as error:  # each database has errors of its own
        raise FileError(one_line(f"{address}: cannot be used as a storage of trials: {error}")) from error


@contextmanager
def telling(address: str | None) -> Iterator[None]:
    """What a database says in the middle of a search, as an error of the file."""
    import optuna

    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise FileError(one_line(f"{address}: no longer a storage of trials: {error.__cause__ or error}")) from error


class Search:
    """Makes trials of one model until there are as many as were asked for.

    Args:
        subject: from `open_model`, with samples.
        storage: where trials are kept, see `storage_of`.
        settings: everything that is not searched over.
        metric: what is to stay high, as for `reach`.
        progress: called with (phase, done, total).

    Raises:
        UsageError: no samples, or no optuna.
        FileError: the storage cannot be used.
    """

    def __init__(
        self,
        subject: Subject,
        storage: str | None,
        settings: Settings | None = None,
        *,
        metric: str | Metric | None = None,
        progress: Progress | None = None,
    ) -> None:
        if subject.calibration is None:
            raise UsageError("a search needs samples; give --calib")
        self.subject, self.settings, self.metric, self.progress = subject, settings or Settings(), metric, progress
        self.timed = self.settings.of == "latency"
        self.address, self.storage = storage, storage_of(storage)
        self._planners: OrderedDict[str, Planner] = OrderedDict()

    @property
    def name(self) -> str:
        """Of the study: by what its trials depend on."""
        decided = {k: v for k, v in self.settings.here().decided().items() if k not in ("threads", "memory", "seed")}
        machine = socket.gethostname() if self.timed else ""  # times are compared with those of one machine alone
        space = [(d.name, d.choices) for d in SPACE]  # a study does not take other choices than it began with
        own = self.subject.digest, self.subject.samples_digest
        of = [*own, decided, _spelled(self.metric), machine, __version__, space]
        return f"onnxprune-{digest_of(of)[:16]}"

    @cached_property
    def study(self) -> optuna.Study:
        """The trials; begun with the default at some ratios where there are none."""
        import optuna

        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            directions=["maximize", "minimize", "minimize"],
            load_if_exists=True,
        )
        begun = found.get_trials(deepcopy=False)
        found.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTS, seed=self.settings.seed + len(begun) + os.getpid(), constant_liar=True
        )
        if not begun:
            chosen = {d.name: d.choices[0] for d in self._space()}
            for ratio in DEFAULTS:
                given = {"ratio": ratio, **chosen}
                found.enqueue_trial(given, user_attrs={"chosen": given, "default": True})
        return found

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """What every trial has values of."""
        cost = (
            "time"
            if self.timed
            else {"params": "parameters"}.get(self.settings.of or "macs", self.settings.of or "MACs")
        )
        name = named(self.metric, self._measure)
        return Objective(name, "", True), Objective(f"{cost} left", "%", False), Objective("size", " kB", False)

    @cached_property
    def _measure(self) -> Any:
        return metric_of(self.subject, self.settings, self.metric)

    @cached_property
    def _original(self) -> tuple[float, ...]:
        model = self.subject.model
        return float(self._measure(model)), 100.0, byte_size(self.subject.whole_of(model)) / 1e3

    def _space(self) -> list[Dimension]:
        return [d for d in SPACE if getattr(self.settings, d.name) in (None, "auto")]

    # -- the loop -----------------------------------------------------------------------------------------

    def run(self, trials: int) -> Searched:
        """Make trials until there are so many, those that others are making among them.

        Raises:
            UsageError: fewer than one.
            PruneError: the original cannot be measured.
            FileError: the storage is lost on the way.
        """
        if trials < 1:
            raise UsageError(f"{trials} trials are none; give --trials 1 or more")
        with telling(self.address):
            return self._run(trials)

    def _run(self, trials: int) -> Searched:
        import optuna
        from optuna.trial import TrialState

        before, study = self._original, self.study
        while True:
            self._make_up()
            trial = study.ask()
            trial.set_user_attr("by", _me())
            earlier = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
            ahead = sum(t.state != TrialState.FAIL for t in earlier)
            if ahead >= trials:  # one too many
                study.tell(trial, state=TrialState.FAIL)
                if "chosen" in trial.user_attrs:
                    self._line_up(trial.user_attrs["chosen"], bool(trial.user_attrs.get("default")))
                return self.found(trials, before)
            if self.progress:
                self.progress("search", ahead, trials)
            try:
                values = self._try(trial)
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
            except BaseException:
                study.tell(trial, state=TrialState.FAIL)
                raise
            else:
                study.tell(trial, list(values))

    def found(self, trials: int, original: Sequence[float]) -> Searched:
        """What is in the storage."""
        from optuna.trial import TrialState

        told = self.study.get_trials(deepcopy=False)
        done = [t for t in told if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        return Searched(
            self.subject.digest,
            self.subject.samples_digest or "",
            self.objectives,
            tuple(original),
            trials,
            sum(t.state == TrialState.RUNNING for t in told),
            tuple(_told(t) for t in done),
            {t.number: PrunePlan.from_json(t.user_attrs["plan"]) for t in done if "plan" in t.user_attrs},
        )

    def _make_up(self) -> None:
        """Put trials of processes that are gone in line once more."""
        from optuna.trial import TrialState

        for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _gone(t.user_attrs.get("by"), t.datetime_start):
                with suppress(ValueError, RuntimeError):  # somebody else was quicker
                    self.study.tell(t.number, state=TrialState.FAIL)
                    chosen = {**t.user_attrs.get("chosen", {}), **t.params}
                    self._line_up(chosen, bool(t.user_attrs.get("default")))

    def _line_up(self, chosen: Mapping[str, Any], default: bool) -> None:
        """Put a choice in line."""
        known = {"chosen": chosen, **({"default": True} if default else {})}
        self.study.enqueue_trial(dict(chosen), user_attrs=known)

    # -- a trial ------------------------------------------------------------------------------------------

    def _try(self, trial: optuna.Trial) -> tuple[float, ...]:
        """The values of what Optuna proposes.

        Raises:
            TrialPruned: it cannot be, or a look at it is enough.
        """
        import optuna

        ratio = trial.suggest_float("ratio", *RATIOS)
        chosen: dict[str, Any] = {}
        for d in self._space():
            if d.where(chosen, self.settings):
                chosen[d.name] = trial.suggest_categorical(d.name, d.choices)
        methods = {"methods": tuple(chosen["methods"].split(","))} if "methods" in chosen else {}
        try:
            settings = replace(self.settings, **{**chosen, **methods})
            planner = self._planner(settings, chosen)
            plan = planner.plan(ratio)
            if self._worse(trial, planner, plan):
                raise optuna.TrialPruned
            result = apply_plan(self.subject, plan, settings, bench=self.timed, progress=self.progress)
        except PruneError as error:
            trial.set_user_attr("why", one_line(error))
            raise optuna.TrialPruned from error
        trial.set_user_attr("plan", plan.to_json())
        trial.set_user_attr("sha256", sha256(b"".join(serialized(result.model))).hexdigest())
        left = 100 / planner.gain(plan)
        if self.timed and result.latency is not None:
            left = 100 / result.latency.comparisons[0].speedup
        return float(self._measure(result.runs)), left, result.after.bytes / 1e3

    def _planner(self, settings: Settings, chosen: Mapping[str, Any]) -> Planner:
        key = digest_of(dict(chosen))
        if key not in self._planners:
            self._planners[key] = Planner(self.subject, settings, self.progress)
            if len(self._planners) > PLANNERS:
                self._planners.popitem(last=False)
        self._planners.move_to_end(key)
        return self._planners[key]

    def _worse(self, trial: optuna.Trial, planner: Planner, plan: PrunePlan) -> bool:
        """Whether a finished trial that is no larger and costs no more does clearly less damage, by a look alone."""
        from optuna.trial import TrialState

        cost, size = 1 / planner.gain(plan), byte_size(planner.unrepaired(plan))
        look = planner.damage(plan)
        own = {"cost": cost, "bytes": size, "look": look}
        for name, value in own.items():
            trial.set_user_attr(name, value)
        for t in trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            its = t.user_attrs
            if its["cost"] <= cost and its["bytes"] <= size and CLEARLY * its["look"] < look:
                times = look / max(its["look"], 1e-12)
                trial.set_user_attr("why", f"{times:.1f} times the damage of trial {t.number}, which is no larger")
                return True
        return False


def plan_of(storage: str, number: int, digest: str) -> PrunePlan:
    """The plan of a trial.

    Args:
        storage: where trials are kept.
        number: of the trial.
        digest: of the model that it is of.

    Raises:
        UsageError: there is no such trial, or it was not finished.
        FileError: the storage cannot be read.
    """
    file = storage
    if storage.startswith("sqlite:///"):  # options may follow
        file = storage.removeprefix("sqlite:///").partition("?")[0]
    if "://" not in file and not Path(file).exists():  # opening it would make it
        raise FileError(one_line(f"{storage}: no such file; check the path"))
    kept = storage_of(storage)
    with telling(storage):
        trials = [t for s in kept.get_all_studies() for t in kept.get_all_trials(s._study_id, deepcopy=False)]
    seen = [t for t in trials if t.number == number]
    for t in seen:
        plan = PrunePlan.from_json(t.user_attrs["plan"]) if "plan" in t.user_attrs else None
        if plan is not None and plan.model_digest == digest:
            return plan
    why = "was not finished, or is of another model" if seen else "is not there"
    raise UsageError(f"{storage}: trial {number} {why}; `onnxprune search` lists those that are")


def _told(trial: optuna.trial.FrozenTrial) -> Trial:
    known = trial.user_attrs
    values = None if trial.values is None or "plan" not in known else tuple(map(float, trial.values))
    return Trial(
        trial.number, dict(trial.params), values, bool(known.get("default")), known.get("look"), known.get("why", "")
    )  # fmt: skip


def _spelled(metric: str | Metric | None) -> str | None:
    """A metric by its name; what a function computes is not known."""
    return f"{getattr(metric, '__module__', '')}.{named(metric, metric)}" if callable(metric) else metric


def _me() -> dict[str, Any]:
    """This process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}


def _born(pid: int) -> str | None:
    """When a process of this machine began, in ticks; None where it is gone, empty where nobody tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _gone(by: Mapping[str, Any] | None, since: datetime | None) -> bool:
    """Whether whoever makes a trial is surely gone; of another machine nobody knows."""
    if by is None:
        return since is not None and datetime.now() - since > SILENT
    return bool(by["host"] == socket.gethostname() and _born(by["pid"]) != by["born"])
