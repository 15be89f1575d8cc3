"""Times that planning needs, measured where the network will run: ONNX Runtime and numpy are all it takes.

What is to be measured is a list of questions (`timing.devices` writes it): small models without their weights, which
are made here at random with the sizes, the mean and the spread that they had. Each is answered once, and the file of
answers is written whole after every few of them: killed, the next run goes on where this one stood. `onnxprune profile
MODEL -o FILE.py` writes this file with a list in it, to be copied anywhere and run there:

    python FILE.py -o device.json

So this module imports nothing of the package. How a run is timed is said here, and the package's own timers take it
from here.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARM = 3
"""First runs, that do not count."""
SAVE_S = 2.0
"""Answers are written at least that often, in seconds."""
SCHEMA, KIND = 1, "onnxprune device"
WORK = ""
"""The packed list of questions; empty in the package."""


# ---- how a run is timed ----------------------------------------------------------------------------------


def repeats(budget_ms: float, least_most: Sequence[int]) -> Iterator[None]:
    """Once for every run of a measurement: `WARM` and the least, then until the time or the most is reached."""
    (least, most), begin = least_most, time.perf_counter()
    for done in range(WARM + most):
        if done >= WARM + least and (time.perf_counter() - begin) * 1e3 >= budget_ms:
            return
        yield


def typical(times: Sequence[float]) -> float:
    """The mean of the faster half, the first runs left out."""
    ordered = np.sort(times[WARM:])
    return float(ordered[: max(1, (len(ordered) + 1) // 2)].mean())


def spent_by_node(profile: str | Path) -> dict[str, tuple[float, str]]:
    """Event name -> (ms of a run, operator), from a profile of ONNX Runtime."""
    spent: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(Path(profile).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            which = event["name"][: -len("_kernel_time")], str(event.get("args", {}).get("op_name", ""))
            spent.setdefault(which, []).append(event["dur"] / 1e3)
    # the clock counts microseconds: the mean of the faster half tells more than one of its ticks
    return {name: (typical(ms), op) for (name, op), ms in spent.items()}


def in_turns(
    runs: Sequence[Callable[[], object]],
    budget_ms: float,
    least_most: Sequence[int],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[float]:
    """What a run of each takes in ms, all of them run in turns; `clock` counts nanoseconds."""
    walls: list[list[float]] = [[] for _ in runs]
    for _ in repeats(budget_ms, least_most):
        for run, own in zip(runs, walls):  # noqa: B905  # as many, and old Pythons know no `strict`
            before = clock()
            run()
            own.append((clock() - before) / 1e6)
    return [typical(own) for own in walls]


def beside_profile(
    profiled: Callable[[], object],
    end: Callable[[], str],
    run: Callable[[], object],
    budget_ms: float,
    least_most: Sequence[int],
    clock: Callable[[], int],
) -> tuple[dict[str, tuple[float, str]], float]:
    """(event name -> (ms of a run, operator), ms of a whole run without the profiler), run in turns.

    Args:
        profiled, run: one run with ONNX Runtime's profiler and one without.
        end: ends the profile, and tells where it lies.
        budget_ms, least_most: time for each of the two; fewest and most runs.
        clock: counts nanoseconds.
    """

    walls: list[float] = []
    for _ in repeats(2 * budget_ms, least_most):
        profiled()
        before = clock()
        run()
        walls.append((clock() - before) / 1e6)
    return spent_by_node(end()), typical(walls)


def clock_of(threads: int, on_cpu: bool) -> Callable[[], int]:
    """With one thread a run's time on the core, so that others on a busy machine do not count."""
    return time.thread_time_ns if threads == 1 and on_cpu else time.perf_counter_ns


# ---- models whose weights are made up --------------------------------------------------------------------


def with_weights(template: bytes, weights: Sequence[Mapping[str, Any]]) -> bytes:
    """A serialised model with the weights that it lacks. Of two messages one after the other protobuf makes one, with
    the lists of both (field 7 of a ModelProto is its graph, field 5 of a GraphProto its initializers)."""
    graph = b"".join(_field(5, _tensor(w)) for w in weights)
    return template + _field(7, graph)


def made(spec: Mapping[str, Any]) -> Any:
    """The array that a weight or an input is described by: its values, or numbers with its mean and spread."""
    dtype, dims = np.dtype(spec["dtype"]), [int(n) for n in spec["dims"]]
    if "values" in spec:
        return np.frombuffer(base64.b64decode(spec["values"]), dtype).reshape(dims)
    values = np.random.default_rng(0).standard_normal(dims, np.float32) * spec["spread"] + spec["mean"]
    if spec["positive"]:  # a variance, say
        values = np.abs(values)
    if dtype.kind in "iu":
        values = np.clip(np.round(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)


def _tensor(spec: Mapping[str, Any]) -> bytes:
    """A TensorProto: dims (1), data_type (2), name (8), raw_data (9)."""
    dims = b"".join(b"\x08" + _varint(int(n)) for n in spec["dims"])
    name = str(spec["name"]).encode()
    return dims + b"\x10" + _varint(int(spec["type"])) + _field(8, name) + _field(9, made(spec).tobytes())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# ---- questions and answers -------------------------------------------------------------------------------


class Runner:
    """Answers questions here.

    Args:
        work: providers, their options, and what else is the same for all questions.
        threads: of ONNX Runtime.
    """

    def __init__(self, work: Mapping[str, Any], threads: int):
        import onnxruntime

        self.ort, self.work, self.threads = onnxruntime, work, threads
        self.on_cpu = work["providers"][0] == "CPUExecutionProvider"

    def answer(self, question: Mapping[str, Any]) -> Any:
        """What is asked: "nodes" gives [events by name, ms of a run], "walls" the ms of a run of each model."""
        limits = question["budget_ms"], question["least_most"]
        feeds = {spec["name"]: made(spec) for spec in question["feeds"]}
        models = [with_weights(base64.b64decode(m["template"]), m["weights"]) for m in question["models"]]
        clock = clock_of(self.threads, self.on_cpu)
        if question["kind"] == "walls":
            return in_turns([self._run(self._open(m), feeds) for m in models], *limits, clock)
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            profiled, run = self._open(models[0], Path(folder, "p")), self._run(self._open(models[0]), feeds)
            ending = profiled.end_profiling
            return list(beside_profile(lambda: profiled.run(None, feeds), ending, run, *limits, clock))

    def _open(self, model: bytes, profile: Path | None = None) -> Any:
        options = self.ort.SessionOptions()
        options.log_severity_level = 4
        options.inter_op_num_threads, options.intra_op_num_threads = 1, self.threads
        if self.threads > 1:  # a thread that waits sleeps
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        named = self.work["provider_options"]
        providers = [(name, named.get(name, {})) for name in self.work["providers"]]
        session = self.ort.InferenceSession(model, options, providers=providers)
        if session.get_providers()[0] != self.work["providers"][0]:
            raise SystemExit(f"{self.work['providers'][0]} did not start here; found {session.get_providers()}")
        return session

    def _run(self, session: Any, feeds: Mapping[str, Any]) -> Callable[[], object]:
        if self.on_cpu:
            return lambda: session.run(None, feeds)
        binding, device = session.io_binding(), self.work["device"]
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self.ort.OrtValue.ortvalue_from_numpy(value, device, 0))
        for port in session.get_outputs():
            binding.bind_output(port.name, device)
        return lambda: session.run_with_iobinding(binding)


def measure(
    work: Mapping[str, Any],
    output: Path,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
    runner: Callable[[Mapping[str, Any], int], Any] = Runner,
) -> dict[str, Any]:
    """Answer every question that the file does not answer yet.

    Args:
        work: the questions, by what they are known by, and on what they are measured.
        output: the file, read first and written as it grows.
        threads: of ONNX Runtime.
        progress: called with (answers, questions).
        runner: what answers.

    Returns:
        What the file holds in the end.

    Raises:
        ValueError: the file holds something else.
    """
    asked, content = work["questions"], head(work, threads)
    answers = _earlier(output, content)
    content["answers"] = answers
    here, saved = runner(work, threads), time.monotonic()
    try:
        for question, asks in asked.items():
            if question not in answers:
                try:
                    answers[question] = here.answer(asks)
                except Exception as error:  # this provider runs other layers, not this one
                    answers[question] = {"failed": str(error).split("\n", 1)[0][:200]}
            if progress is not None:
                progress(len(answers), len(asked))
            if time.monotonic() - saved > SAVE_S:
                write(output, content)
                saved = time.monotonic()
    finally:
        write(output, content)
    return content


def head(work: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What a file of answers says of itself: what was measured, on what."""
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "device": device(),
        "providers": work["providers"],
        "provider_options": work["provider_options"],
        "threads": threads,
        "batch": work["batch"],
        "precision": work.get("precision"),
        "model": work["model"],
        "digest": hashlib.sha256("\n".join(sorted(work["questions"])).encode()).hexdigest()[:16],
        "questions": len(work["questions"]),
    }


def device() -> dict[str, Any]:
    """The machine that this runs on, as far as the system tells."""
    import onnxruntime

    name = platform.processor() or platform.machine()
    for path, start in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        found = [line.strip("\0 ").rpartition(": ")[2] for line in lines if line.startswith(start)]
        if found:
            name = found[0]
            break
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": name, "platform": platform.platform(), "cores": usable, "onnxruntime": onnxruntime.__version__}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """The file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _earlier(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of a run before this one."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differs = [key for key, value in content.items() if found.get(key) != value]
        answers = dict(found.get("answers", {}))
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{path}: is no profile of a device; choose another file") from None
    if differs:
        raise ValueError(f"{path}: is a profile with another {' and '.join(differs)}; choose another file")
    return answers


def main() -> None:
    """Answer the questions in this file."""
    parser = argparse.ArgumentParser(description="Measure, on this device, the times that onnxprune plans with.")
    parser.add_argument("-o", "--output", default="device.json", help="where to write (default device.json)")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: as the script was made)")
    args = parser.parse_args()
    work = json.loads(zlib.decompress(base64.b64decode(WORK)))

    def progress(done: int, total: int) -> None:
        print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)

    try:
        measure(work, Path(args.output), args.threads or work["threads"], progress)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"\nwrote {args.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
