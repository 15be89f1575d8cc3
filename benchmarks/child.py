"""One prune run in a process of its own: how long it took, and the most memory that it held.

Reads a job as JSON on standard input and prints the outcome as JSON; `run` starts it and waits. A process of its own,
because the peak of a process never goes down again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run(
    model: Path, ratio: float, calibration: Path, out: Path | None, settings: Mapping[str, Any], timeout_s: float = 3600
) -> dict[str, Any]:
    """Prune `model` with the samples in the `.npz` `calibration`, write `out`, and tell time and memory.

    Returns:
        seconds, peak_mib, imports_mib (held before the run began), macs_removed, params_removed, and the fidelity on
        the held-out samples; or `refused`, the error's line.
    """
    job = {
        "model": str(model),
        "ratio": ratio,
        "calibration": str(calibration),
        "out": out and str(out),
        "settings": dict(settings),
    }
    try:
        done = subprocess.run(
            [sys.executable, __file__], input=json.dumps(job), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return {"refused": f"not done after {timeout_s:g} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        return {"refused": last[0][:300]}
    return json.loads(done.stdout)


def peak_mib() -> float:
    """Most resident memory so far. `VmHWM` where Linux tells it: `ru_maxrss` begins with the parent's memory."""
    try:
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]
    except (OSError, TypeError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 2**20 if sys.platform == "darwin" else most / 1024


def main() -> None:
    import onnxprune.api
    from onnxprune.errors import PruneError

    job = json.load(sys.stdin)
    before, begin, cpu = peak_mib(), time.perf_counter(), time.process_time()
    try:
        result = onnxprune.prune(job["model"], job["ratio"], calibration=job["calibration"], **job["settings"])
    except PruneError as error:
        print(json.dumps({"refused": str(error)}))
        return
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": peak_mib(),
        "imports_mib": before,
        "macs_removed": result.macs_removed,
        "params_removed": 1 - result.after.params / result.before.params,
        "surgery": result.surgery.worst,
        "warnings": list(result.warnings),
    }
    if result.fidelity:
        row |= {"cosine_held_out": result.fidelity.cosine, "top1_held_out": result.fidelity.top1}
    if job["out"]:
        result.save(job["out"], force=True)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
