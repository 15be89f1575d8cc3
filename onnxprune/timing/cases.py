"""Several batch sizes and several shapes of a dynamic input, one after the other.

Each case is a `bench` of its own: models are compared within a case, on the same input, never across cases.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.timing.bench_inputs import Model
from onnxprune.timing.bench_result import BenchResult
from onnxprune.timing.latency import bench

BATCH = "N"
"""Stands for the batch size in a shape."""
Shape = Sequence[int | str]


def bench_cases(
    models: Sequence[Model],
    *,
    batches: Sequence[int] = (1,),
    shapes: Sequence[Mapping[str, Shape]] = (),
    time_budget_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[BenchResult, ...]:
    """One result for each of `shapes` at each of `batches`, in that order.

    Args:
        models: the first is the baseline.
        batches: sizes of the batch; a letter N in a shape stands for it.
        shapes: input name -> shape; none: one case, with the sizes that `bench` takes.
        time_budget_s: for all cases together.
        progress: called with (rounds done, rounds in all cases).
        **options: the other options of `bench`.

    Raises:
        PruneError: as `bench`.
    """
    todo = list(cases(batches, shapes))
    begin, results = time.perf_counter(), []
    for k, (batch, given) in enumerate(todo):
        share = None
        if time_budget_s is not None:  # what a case leaves goes to those after it
            left = time_budget_s - (time.perf_counter() - begin)
            share = max(left / (len(todo) - k), min(1e-3, time_budget_s))
        report = _part(progress, k, len(todo))
        results.append(bench(models, batch=batch, shapes=given, time_budget_s=share, progress=report, **options))
    return tuple(results)


def cases(
    batches: Sequence[int], shapes: Sequence[Mapping[str, Shape]]
) -> Iterator[tuple[int, dict[str, tuple[int, ...]] | None]]:
    """(batch, shapes) of every case.

    Raises:
        UsageError: no batch, one twice, or several that no shape has room for.
    """
    if not batches or len(set(batches)) != len(batches):
        raise UsageError(f"batches must be one or more different numbers, not {', '.join(map(str, batches)) or 'none'}")
    if len(batches) > 1 and any(BATCH not in shape for given in shapes for shape in list(given.values())[:1]):
        raise UsageError(
            f"several batches, but a shape that fixes its own; write {BATCH} for the batch: x={BATCH},3,224,224"
        )
    for given in shapes or ({},):
        for batch in batches:
            filled = {name: tuple(batch if n == BATCH else int(n) for n in shape) for name, shape in given.items()}
            yield batch, filled or None


def _part(progress: Callable[[int, int], None] | None, k: int, count: int) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, asked: progress(k * asked + done, count * asked)
