"""Importance of channels: the table of criteria. A criterion sees slices of named tensors, never an operator.

An entry is one decorated function of one group. It returns (width,) scores, higher is more important, in the units of
that group alone (the allocator normalises), or, where channels are chosen together, a `Choice`. It says what it needs
(`NEEDS`), and that alone is gathered for it (`decide.evidence`); whoever asks for it by name asks the table for the
rest: whether it goes without samples, which package is missing. To add one, write ten lines, here or anywhere:

    @criterion("mine", help="largest activations", needs="moments")
    def mine(group, evidence):
        return ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from onnxprune.channels import ChannelGroup
from onnxprune.decide.evidence import Evidence
from onnxprune.decide.norms import energies, filter_sums
from onnxprune.decide.selection import Choice, by_lasso, by_likeness
from onnxprune.errors import UsageError, unknown
from onnxprune.measure.gradients import Gradients

Answer = np.ndarray | Choice
"""What a criterion says of one group: scores, or a choice."""
Function = Callable[[ChannelGroup, Evidence], Answer]


@dataclass(frozen=True)
class Package:
    """A package that not everybody has: the module, and what it is called where it is installed from."""

    module: str
    name: str


@dataclass(frozen=True)
class Need:
    """What a criterion may need.

    Attributes:
        help: what it is.
        samples: it comes from samples, and is not there without.
        package: what has to be installed for it.
    """

    help: str
    samples: bool = True
    package: Package | None = None


TORCH = Package("torch", "torch")
NEEDS = {
    "samples": Need("samples, whatever for"),
    "moments": Need("mean and mean square of what the readers read (`Evidence.moments`)"),
    "curves": Need("second moments of what the readers read (`Evidence.curves`, `Evidence.energies`)"),
    "likeness": Need("how alike channels are as they are made (`Evidence.likeness`)"),
    "gradients": Need("a backward pass (`Evidence.gradients`)", package=TORCH),
    "torch": Need("a function in torch", samples=False, package=TORCH),
    "sklearn": Need("a solver", samples=False, package=Package("sklearn", "scikit-learn")),
}


@dataclass(frozen=True)
class Criterion:
    """One entry of the table.

    Attributes:
        name: as `--criterion` takes it.
        help: what it ranks channels by, in a line.
        function: what it says of one group.
        needs: of `NEEDS`.
        without_samples: what stands for what it needs where there are no samples; None: it cannot do without.
        merges: whether what it removes has its like among what stays, into which a repair of statistics may merge it.
    """

    name: str
    help: str
    function: Function
    needs: frozenset[str] = frozenset()
    without_samples: str | None = None
    merges: bool = False

    @property
    def needs_samples(self) -> bool:
        """Whether it cannot do without samples."""
        return self.without_samples is None and any(NEEDS[need].samples for need in self.needs)

    def check_packages(self) -> None:
        """Find out before any work is done what is not installed.

        Raises:
            UsageError: a package is missing.
        """
        for package in (NEEDS[need].package for need in sorted(self.needs)):
            if package is not None and find_spec(package.module) is None:
                raise UsageError(f"--criterion {self.name} needs {package.name} - pip install {package.name}")

    def choices(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> dict[str, Choice]:
        """What it says of every group, by name.

        Raises:
            UsageError: not one score a channel.
        """
        return {g.name: self._choice(g, self.function(g, evidence)) for g in groups}

    def _choice(self, group: ChannelGroup, answer: Answer) -> Choice:
        if isinstance(answer, Choice):
            return answer
        scores = np.asarray(answer)
        if scores.shape != (group.width,):
            raise UsageError(
                f"criterion {self.name!r}: scores of shape {scores.shape} for group {group.name!r};"
                f" return one a channel, ({group.width},)"
            )
        return Choice(np.argsort(scores, kind="stable"), scores=scores)


CRITERIA: dict[str, Criterion] = {}
"""The table, in the order in which it is shown."""
BY_DEFAULT = {True: "elimination", False: "activation"}
"""The criterion unless another is asked for: with samples, and without."""


def criterion(
    name: str,
    *,
    help: str,
    needs: str | Collection[str] = (),
    without_samples: str | None = None,
    merges: bool = False,
) -> Callable[[Function], Function]:
    """Enters a function of a group and the evidence into the table.

    Args:
        name, help, without_samples, merges: as in `Criterion`.
        needs: one or several of `NEEDS`. What comes from samples makes the criterion need samples, unless it says
            what it does without.

    Raises:
        UsageError: there is no such need.
    """
    asked = frozenset([needs] if isinstance(needs, str) else needs)
    for need in sorted(asked - set(NEEDS)):
        raise unknown("need", need, NEEDS)

    def enter(function: Function) -> Function:
        CRITERIA[name] = Criterion(name, help, function, asked, without_samples, merges)
        return function

    return enter


def named(name: str) -> Criterion:
    """The entry of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    return CRITERIA[name]


# ---- the table -------------------------------------------------------------------------------------------


@criterion("elimination", help="the error that is left once the readers are refitted", needs="curves")
def elimination(group: ChannelGroup, evidence: Evidence) -> Choice:
    """The order of least error, one channel after the other (Hassibi & Stork, NeurIPS 1992): that of the curve."""
    return Choice(None)


@criterion("lasso", help="LASSO on what each channel adds to its readers", needs={"curves", "sklearn"})
def lasso(group: ChannelGroup, evidence: Evidence) -> Choice:
    """All channels of a width at once (He, Zhang, Sun, ICCV 2017)."""
    assert evidence.curves is not None
    return by_lasso(evidence.curves, group, evidence.energies[group.name])


@criterion("similarity", help="one of each cluster of like channels", needs="likeness", merges=True)
def similarity(group: ChannelGroup, evidence: Evidence) -> Choice:
    """Clusters by distances that correlations count in (after Zhang, Zhao, Ni et al., arXiv 1908.02620)."""
    assert evidence.likeness is not None
    return by_likeness(evidence.likeness.distance(group))


@criterion("similarity-independent", help="one of each cluster of like means and deviations", needs="likeness")
def similarity_independent(group: ChannelGroup, evidence: Evidence) -> Choice:
    """Clusters by means and deviations alone."""
    assert evidence.likeness is not None
    return by_likeness(evidence.likeness.distance(group, correlated=False))


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """Over batches, added up one after the other."""
    return np.asarray(sum(values)) / max(1, len(values))


@criterion("taylor", help="change of the loss without it, to first order", needs="gradients")
def taylor(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """|Σ_i w_i g_i|, mean over batches of the absolute value (Molchanov et al., CVPR 2019)."""
    return _mean([np.abs(sums) for sums in _gradients(group, evidence).sums])


@criterion("fisher", help="change of the loss without it, to second order (Fisher matrix)", needs="gradients")
def fisher(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """½ E[(Σ_i w_i g_i)²]: the diagonal of the Fisher matrix along the channel (Theis et al., 2018)."""
    return _mean([0.5 * sums**2 for sums in _gradients(group, evidence).sums])


@criterion("obd", help="change of the loss without its weights, one by one (Optimal Brain Damage)", needs="gradients")
def obd(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """½ Σ_i w_i² E[g_i²]: Optimal Brain Damage with the empirical Fisher diagonal (LeCun et al., 1990)."""
    return _mean([0.5 * squares for squares in _gradients(group, evidence).squares])


def _gradients(group: ChannelGroup, evidence: Evidence) -> Gradients:
    return evidence.gradients[group.name]


@criterion("l1", help="sum of |w| over its filters")
def l1(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Sum of |w| over the filters that make the channel (Li et al., ICLR 2017)."""
    return filter_sums(group, evidence.weight, 1)


@criterion("l2", help="norm of its filters")
def l2(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Euclidean norm of the filters that make the channel."""
    return np.sqrt(filter_sums(group, evidence.weight, 2))


@criterion(
    "activation", help="energy of what it adds to its readers", needs="moments", without_samples="E[x²] is taken as 1"
)
def activation(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Mean square of what the channel adds to its readers."""
    return energies(group, evidence.weight, evidence.moments)


@criterion("random", help="noise: the control that every other must beat")
def random(group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    """Uniform noise."""
    return evidence.rng.random(group.width)
