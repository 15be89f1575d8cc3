"""Settings in the words of the rooms below: widths that are allowed, what times are taken on, criterion, allocation."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from onnxprune.channels import Analysed
from onnxprune.decide.blocks import all_blocks
from onnxprune.decide.criteria import BY_DEFAULT, named
from onnxprune.decide.limits import Limits, names_of
from onnxprune.elsewhere.spread import Elsewhere
from onnxprune.errors import UsageError, nearest, one_line
from onnxprune.graph.layers import products
from onnxprune.pipeline.finishing import finish_of
from onnxprune.pipeline.settings import RECIPES, Settings
from onnxprune.samples import partition
from onnxprune.samples.calibration import Calibration
from onnxprune.timing.devices import recorded
from onnxprune.timing.engine import Engine

TF32 = 4
"""Of so many channels the kernels of a GPU are made that round float32 to TF32, as ONNX Runtime has them do."""
Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""


def report_of(progress: Progress | None, phase: str) -> Callable[[int, int], None] | None:
    """What tells the progress of one phase; None where nobody listens."""
    return None if progress is None else lambda k, n: progress(phase, k, n)


def counted(data: Calibration, phase: str, progress: Progress | None, size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """The samples in batches, with word of how many are done."""
    return partition.counted(data, size, report_of(progress, phase))


def elsewhere_of(settings: Settings) -> Elsewhere:
    """Where trials are made, and kept: here where they need files of this machine, or depend on how fast it is."""
    if settings.recipe is not None or settings.minutes is not None:
        return Elsewhere()
    return Elsewhere(settings.backend, settings.address, settings.store)


def engine_of(settings: Settings) -> Engine:
    """What timed runs run on, or what stands for it: the device that was measured elsewhere.

    Raises:
        UsageError: it is no profile of a device.
    """
    if settings.device is not None:
        return recorded(settings.device)
    return Engine(settings.providers, settings.provider_options or {}, settings.threads or 1)


def run_batch(settings: Settings) -> int:
    """Samples in a run that is timed, or was on the device.

    Raises:
        UsageError: another batch was asked for than was measured.
    """
    if settings.device is None:
        return settings.batch
    batch = recorded(settings.device).batch
    if settings.batch not in (1, batch):
        raise UsageError(one_line(f"{settings.device}: was measured with a batch of {batch}; drop --batch"))
    return batch


def check_device(settings: Settings) -> None:
    """Refuse a device where no time counts, or that cannot tell what counts.

    Raises:
        UsageError: for any of this.
    """
    if settings.device is None:
        if settings.refine:
            raise UsageError("--refine corrects what is predicted for a device; give --device")
        return
    if settings.of != "latency":
        raise UsageError("--device says what a run takes there; give --speedup, --latency-ms or --of latency")
    measured = recorded(settings.device).precision
    if measured != settings.precision:
        words = f"--precision {measured}" if measured else "the floats of the model; drop --precision"
        raise UsageError(one_line(f"{settings.device}: was measured with {words}"))
    if set(settings.kinds()) & set(RECIPES):
        raise UsageError(
            f"--methods {RECIPES[0]} needs times that a profile does not have; drop --device or the recipe"
        )


def unrefined(settings: Settings) -> None:
    """Refuse to correct a prediction where none is made.

    Raises:
        UsageError: they correct one.
    """
    if settings.refine:
        raise UsageError("--refine corrects a speed-up that is predicted; give --speedup or --latency-ms")


def limits_of(settings: Settings) -> Limits:
    """The widths that are allowed; none but the full ones where channels are not to be cut."""
    if not {"channels", "3c"} & set(settings.kinds()):
        return Limits(include=r"(?!)")
    gpu, how = engine_of(settings).on_gpu, finish_of(settings)
    blind = settings.of != "latency" and gpu  # a latency model has seen the stairs
    multiple = (how.multiple if how else TF32) if gpu else 1
    own = settings.include, settings.exclude
    return Limits(settings.round_to, settings.min_width, *own, on_gpu=blind, multiple=multiple)


def allows(settings: Settings, weight: str) -> bool:
    """Whether a layer with a weight of that name may be made of two."""
    wanted = settings.include is None or bool(re.search(settings.include, weight))
    return wanted and not (settings.exclude is not None and re.search(settings.exclude, weight))


def unmatched(
    net: Analysed, *, include: str | None = None, exclude: str | None = None, keep_block: str | None = None
) -> list[str]:
    """What is to be said of patterns that match nothing: `--exclude`, `--keep-block`.

    Raises:
        UsageError: `include` matches nothing.
    """
    if include is exclude is keep_block is None:
        return []
    blocks = {key for block in all_blocks(net) for key in (block.name, *block.nodes)}
    uses = [layer.weight for layer in products(net.graph, net.shapes) if layer.weight is not None]
    weights = {net.graph.nodes[key].input[i] for key, i in uses}
    named = blocks | weights | {name for group in net.channels.groups for name in names_of(group)}
    if include is not None and not _matches(include, named):
        raise UsageError(_nothing("--include", include, named))
    given = (("--exclude", exclude, named), ("--keep-block", keep_block, blocks))
    return [_nothing(o, pattern, known) for o, pattern, known in given if pattern and not _matches(pattern, known)]


def _matches(pattern: str, names: Collection[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _nothing(option: str, pattern: str, names: Collection[str]) -> str:
    near = nearest(pattern, sorted(names))
    hint = f"; did you mean {near}?" if near else ""
    if option == "--keep-block":
        return one_line(f"{option} {pattern!r} matches no node of a block{hint} - nodes go by their first outputs")
    return one_line(
        f"{option} {pattern!r} matches no group, weight or block{hint} - `onnxprune inspect` lists the groups"
    )


def choices_of(settings: Settings, samples: bool) -> tuple[str, str]:
    """Criterion and allocation, with or without samples.

    Raises:
        UsageError: one was asked for that needs samples, and there are none.
    """
    criterion = settings.criterion or BY_DEFAULT[samples]
    allocation = settings.allocation or ("adaptive" if samples else "uniform")
    if not samples:
        for option, value, needed in (
            ("criterion", criterion, named(criterion).needs_samples),
            ("allocation", allocation, allocation == "adaptive"),
        ):
            if needed:
                raise UsageError(f"--{option} {value} needs samples; give --calib")
    return criterion, allocation
