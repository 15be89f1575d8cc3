"""The format of the finished model: what becomes of its numbers once it is pruned and repaired.

    pruned → repaired → converted → compared with the original, and timed, as it is written

A finish is one decorated function, one entry of the table; the setting that asks for it, its help and what it needs
stand there. The conversions themselves are ONNX Runtime's (`runtime.convert`). Neither numpy nor onnx is imported
before one is made: the command line lists this table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import onnx

    from onnxprune.pipeline.opened import Subject
    from onnxprune.pipeline.settings import Settings
    from onnxprune.runtime.ports import Feeds

SAMPLES = 128
"""Samples whose activations are kept in both networks while weights are rounded; all say how far activations reach."""
SKETCH = 8
"""Samples that are enough for a model that is only timed."""
AT_A_TIME = 4
"""Samples that are run at a time: while ONNX Runtime looks how far activations reach it holds all of a batch's. For
PP-OCR's recogniser 13 GiB with 32 words, 1.9 with 4, in less than half of the time, and the same ranges."""


@dataclass(frozen=True)
class Task:
    """What a finish is given.

    Attributes:
        model: the pruned model, repaired; in float32.
        batches: samples that it may be fitted on.
        rough: whether only its speed and size count.
        threads, seed: as in `Settings`.
        progress: called with (layers done, layers).
    """

    model: onnx.ModelProto
    batches: Sequence[Feeds] = ()
    rough: bool = False
    threads: int | None = None
    seed: int = 0
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Finish:
    """One entry of the table.

    Attributes:
        name: as users write it.
        setting: the setting that asks for it.
        help: one line for users.
        run: makes the converted model.
        needs_samples: whether it cannot do without.
        for_gpu: whether nobody expects it to be faster on a CPU.
        multiple: of so many channels a GPU's kernels are made.
        said: what to say of it, beside the result.
    """

    name: str
    setting: str
    help: str
    run: Callable[[Task], onnx.ModelProto]
    needs_samples: bool = False
    for_gpu: bool = False
    multiple: int = 4
    said: str = ""


FINISHES: dict[str, Finish] = {}


def finish(name: str, *, setting: str, help: str, **rest: Any) -> Callable[..., Callable[[Task], onnx.ModelProto]]:
    """Enter a finish; arguments as the attributes of `Finish`."""

    def enter(function: Callable[[Task], onnx.ModelProto]) -> Callable[[Task], onnx.ModelProto]:
        FINISHES[name] = Finish(name, setting, help, function, **rest)
        return function

    return enter


def names_of(setting: str) -> list[str]:
    """What a setting may be."""
    return [f.name for f in FINISHES.values() if f.setting == setting]


@finish(
    "int8",
    setting="quantize",
    help="weights int8 (7 bits, one scale a channel), activations uint8, rounded against what each layer reads",
    needs_samples=True,
    multiple=32,
    said="int8: QuantizeLinear and DequantizeLinear by ONNX Runtime, weights rounded against quantized inputs",
)
def int8(task: Task) -> onnx.ModelProto:
    from onnxprune.graph.model import Graph
    from onnxprune.rewrite.to_int8 import round_anew
    from onnxprune.runtime import convert
    from onnxprune.runtime.ports import first_samples

    ready = convert.joined(convert.at_least_opset(task.model))
    found = convert.quantized(ready, first_samples(task.batches, SKETCH) if task.rough else task.batches)
    if task.rough:
        return found
    batches = first_samples(task.batches, SAMPLES)
    rounded = round_anew(
        Graph(found), Graph(ready), batches, threads=task.threads, seed=task.seed, progress=task.progress
    )
    return rounded.export()


@finish(
    "fp16",
    setting="precision",
    help="float16 inside, inputs and outputs as they are; for GPUs",
    for_gpu=True,
    multiple=8,
    said="float16 inside; a CPU is no faster with it: time it where it will run (`onnxprune bench --providers cuda`)",
)
def fp16(task: Task) -> onnx.ModelProto:
    from onnxprune.runtime import convert

    return convert.halved(task.model)


def finish_of(settings: Settings) -> Finish | None:
    """The finish that the settings ask for; None: the numbers stay as they are.

    Raises:
        UsageError: they ask for two.
    """
    asked = [f for f in FINISHES.values() if getattr(settings, f.setting) == f.name]
    if len(asked) > 1:
        flags = " and ".join(f"--{f.setting} {f.name}" for f in asked)
        raise UsageError(f"{flags}: one of them")
    return asked[0] if asked else None


def check_finish(subject: Subject, settings: Settings) -> None:
    """Find out at once, not after minutes of other work, that the finished model cannot be converted.

    Raises:
        UsageError: there are no samples, and it needs some.
        UnsupportedError: the model is not in float32, or not all of it runs.
    """
    found = finish_of(settings)
    if found is None:
        return
    flag = f"--{found.setting} {found.name}"
    if found.needs_samples and subject.calibration is None:
        raise UsageError(f"{flag} needs samples; give --calib")
    if subject.barrier is not None:
        raise UnsupportedError(f"{flag}: a part of the model does not run here; convert it where it will run")
    from onnxprune.graph.layers import layers

    kinds = {v.dtype.name for n in layers(subject.graph, subject.net.shapes)
             if n.weight is not None and (v := subject.graph.value(n.weight)) is not None}  # fmt: skip
    from onnxprune.rewrite.quantized import floating

    if floating(subject.net) is not None or not kinds <= {"float32"}:
        raise UnsupportedError(f"{flag}: the model is not in float32; export it so, or drop {flag}")


@dataclass(frozen=True)
class Finishing:
    """The finish of a run, for any number of models.

    Attributes:
        how: the finish; None: models stay as they are.
        batches: samples that models may be fitted on.
        settings: threads and seed.
        progress: called with (layers done, layers).
    """

    how: Finish | None
    settings: Settings
    batches: Sequence[Feeds] = ()
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __call__(self, model: onnx.ModelProto, *, rough: bool = False) -> onnx.ModelProto:
        """The converted model; `rough`: one that is as large and as fast."""
        if self.how is None:
            return model
        own = self.settings
        return self.how.run(Task(model, self.batches, rough, own.threads, own.seed, self.progress))
