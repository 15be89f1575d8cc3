"""Settings in the words of the rooms below: widths that are allowed, what times are taken on, criterion, allocation."""

from __future__ import annotations

import re
from collections.abc import Collection

from onnxprune.channels import Analysed
from onnxprune.decide.blocks import all_blocks
from onnxprune.decide.criteria import BY_DEFAULT, named
from onnxprune.decide.limits import Limits, names_of
from onnxprune.errors import UsageError, nearest, one_line
from onnxprune.graph.layers import products
from onnxprune.pipeline.settings import Settings
from onnxprune.timing.engine import Engine


def engine_of(settings: Settings) -> Engine:
    """What timed runs run on."""
    return Engine(settings.providers, settings.provider_options or {}, settings.threads or 1)


def limits_of(settings: Settings) -> Limits:
    """The widths that are allowed; none but the full ones where channels are not to be cut."""
    if not {"channels", "3c"} & set(settings.kinds()):
        return Limits(include=r"(?!)")
    blind = settings.of != "latency" and engine_of(settings).on_gpu  # a latency model has seen the stairs
    return Limits(settings.round_to, settings.min_width, settings.include, settings.exclude, on_gpu=blind)


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
