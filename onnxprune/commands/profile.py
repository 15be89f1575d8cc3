"""`onnxprune profile`: the times that planning needs, measured here, or a script that measures them elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.commands.common import as_json, check_outputs, inputs_of, print_out, shapes_given
from onnxprune.commands.options import Parser, add_general, add_input_shape, add_output, add_settings, given
from onnxprune.pipeline.settings import REPAIR, SAMPLES, TIMING, Settings
from onnxprune.report.status import Status
from onnxprune.report.terminal import plain, table

if TYPE_CHECKING:
    from onnxprune.pipeline.profiling import Trust


def parser() -> Parser:
    about = (
        "Measure what planning for time needs to know of a device: layers over a grid of widths, their pairs, the\n"
        "network and narrower copies of it. `--speedup 2 --device FILE` then plans anywhere. Interrupted, it goes on\n"
        "where it stood when it is run again. -o FILE.py measures nothing: that is one file to run on the device,\n"
        "with ONNX Runtime and numpy only; the model's weights are not in it, but for the smallest."
    )
    made = Parser("profile", "profile MODEL -o FILE [options]", about)
    made.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add = made.add_argument_group("timing").add_argument
    add_settings(add, "profile", TIMING)
    add_settings(add, "profile", REPAIR)
    add_input_shape(add)
    add_settings(add, "profile", SAMPLES)
    add_output(add, "device.json, measured here or gone on with; .py: a script that measures")
    add_general(made)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    from onnxprune import api
    from onnxprune.files.write import atomic_write_text
    from onnxprune.pipeline.finishing import check_finish
    from onnxprune.pipeline.profiling import questions
    from onnxprune.timing.devices import script

    output = args.output or "device.json"
    scripted = output.endswith(".py")
    check_outputs(args, *[output] * scripted, kept=[output] * (not scripted))
    settings = Settings(**given(args, "profile"))
    status.phase("analyse")
    subject = api.open_model(
        args.model, input_shapes=shapes_given(args), trusted=args.trusted,
        input_value=settings.input_value, batch_axis=settings.batch_axis,
    )  # fmt: skip
    check_finish(subject, settings)
    if not scripted:
        subject.check_timing(settings)
    work = questions(subject, settings, Path(args.model).name)
    if scripted:
        atomic_write_text(script(work), output, force=args.force, sources=inputs_of(args))
        found = None
    else:
        found = _measured(args, subject, work, Path(output), status)
    status.close()
    if args.json:
        nothing: dict[str, Any] = {"device": None, "total_ms": None, "layers_share": None, "checks": []}
        content = {
            "file": output,
            "questions": len(work["questions"]),
            **(nothing if found is None else found.to_json()),
        }
        print_out(as_json({"schema": 1, "kind": "onnxprune profile", **content}, args))
    else:
        print_out(f"{'' if found is None else _text(found)}wrote {plain(output)}: {len(work['questions'])} measurements"
                  f"{'; run it on the device' * scripted}\n")  # fmt: skip


def _measured(args: argparse.Namespace, subject: Any, work: dict[str, Any], output: Path, status: Status) -> Trust:
    from onnxprune.pipeline.profiling import measured

    status.phase("time")
    return measured(subject, work, output, force=args.force, progress=lambda k, n: status.progress("time", k, n))


def _text(found: Trust) -> str:
    """How far what was measured carries."""
    rows = [(f"{c.predicted:.3f}x", f"{c.measured:.3f}x", f"{c.error:+.1%}") for c in found.checks]
    lines = [f"{plain(found.device)}: {found.total_ms:.4g} ms a run, of which the nodes' times add up to "
             f"{found.layers_share:.1%}", ""]  # fmt: skip
    if rows:
        lines += ["narrower copies", table(("predicted", "measured", "error"), rows, ">>>"), ""]
    return "\n".join(lines) + "\n"
