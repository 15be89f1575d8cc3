"""A child process with a clock and a memory cap, for what an ONNX library may not come back from."""

from __future__ import annotations

import os
import subprocess
import sys

from onnx import ModelProto

from onnxprune.errors import FileError, ModelError, one_line
from onnxprune.files.refuse import first_line, refuse

CHILD_SECONDS = 10.0
CHILD_BYTES = 2 * 2**30
"""On top of four times what is sent to the child."""
_CHILD = r"""
import sys
job, seconds, room = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
try:
    import onnx
    data = sys.stdin.buffer.read()
    if job == "inline":
        import onnx.inliner
        flat = onnx.inliner.inline_local_functions(onnx.ModelProto.FromString(data))
        sys.stdout.buffer.write(flat.SerializeToString())
    elif job == "check":
        onnx.checker.check_model(data)
        try:
            onnx.shape_inference.infer_shapes(data)
        except MemoryError:
            raise
        except Exception:
            pass  # inference may not know a type; all that counts is that it comes to an end
    else:
        from onnx.reference import ReferenceEvaluator
        try:
            ReferenceEvaluator(onnx.ModelProto.FromString(data)).run(None, {})
        except MemoryError:
            raise
        except Exception as error:
            if "allocate" in str(error):
                raise MemoryError from error
except MemoryError:
    sys.exit(4)
except Exception as error:
    sys.stderr.write(str(error))
    sys.exit(3)
"""
_JOBS = {
    "inline": "inlining its functions",
    "check": "checking its subgraphs",
    "run": "computing its constants",
}


def in_child(job: str, model: ModelProto, label: str) -> bytes:
    """Does `job` where it can be killed; returns what the child wrote."""
    data = model.SerializeToString()
    room = CHILD_BYTES + 4 * len(data)
    command = [sys.executable, "-P", "-c", _CHILD, job, str(CHILD_SECONDS), str(room)]
    # OpenBLAS maps a large stack per thread, which the cap on addresses would count
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    what = _JOBS[job]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=CHILD_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            one_line(f"{label}: {what} took more than {CHILD_SECONDS:g} s; simplify the model first")
        ) from error
    except OSError as error:
        raise FileError(one_line(f"{label}: {what} needs a child process, which failed: {error}")) from error
    if done.returncode == 0:
        return done.stdout
    if done.returncode == 3:
        refuse(label, f"{first_line(done.stderr.decode('utf-8', 'replace'))}; export the model again")
    if done.returncode == 4:
        refuse(label, f"{what} took more than {room / 2**30:.1f} GiB of memory; simplify the model first")
    refuse(label, f"{what} crashed (status {done.returncode}); simplify the model first")
