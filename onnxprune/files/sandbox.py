"""What an ONNX library may not come back from, in a child process with a clock and a memory cap."""

from __future__ import annotations

import onnx
from onnx import ModelProto

from onnxprune.files.refuse import first_line, refuse
from onnxprune.runtime import child, inside

CAPS = child.Caps()
"""On top of four times what the child gets to see."""


def in_child(job: str, model: ModelProto, label: str) -> bytes:
    """Does `job` where it can be killed; returns what it came to.

    Raises:
        ModelError: it does not work, takes too much, or ends the child.
    """
    function, what = _JOBS[job]
    caps = child.Caps(CAPS.seconds, CAPS.room + 4 * model.ByteSize())
    return child.call(function, model, label, label=label, what=what, caps=caps)


def _inlined(model: ModelProto, label: str) -> bytes:
    import onnx.inliner

    try:
        return onnx.inliner.inline_local_functions(model).SerializeToString()
    except MemoryError:
        raise
    except Exception as error:
        refuse(label, f"{first_line(error)}; export the model again")


def _checked(model: ModelProto, label: str) -> bytes:
    try:
        onnx.checker.check_model(model)
    except MemoryError:
        raise
    except Exception as error:
        refuse(label, f"{first_line(error)}; export the model again")
    try:
        onnx.shape_inference.infer_shapes(model)
    except MemoryError:
        raise
    except Exception:  # it may not know a type; all that counts is that it comes to an end
        pass
    return b""


def _run(model: ModelProto, label: str) -> bytes:
    from onnx.reference import ReferenceEvaluator

    try:
        ReferenceEvaluator(model).run(None, {})
    except MemoryError:
        raise
    except Exception as error:  # what does not run here may run elsewhere; all that counts is how much it takes
        if "allocate" in str(error):
            raise MemoryError from error
    return b""


_JOBS: dict[str, tuple[inside.Job, str]] = {
    "inline": (_inlined, "inlining its functions"),
    "check": (_checked, "checking its subgraphs"),
    "run": (_run, "computing its constants"),
}
"""What is done, and how messages call it."""
