"""A model's first runs, rehearsed in child processes: what it does to a process, it does to one that can be killed.

A child may take as long and hold as much as the file's own honest work asks for, by what its file says it multiplies.
What has come through is run in this process later.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from onnxprune.errors import ModelError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import Observed, follow, observe
from onnxprune.graph.stated import stated_macs
from onnxprune.graph.stops import stopping
from onnxprune.graph.work import Ran
from onnxprune.protobuf.serialize import weight_bytes
from onnxprune.runtime import child, inside, install, sessions
from onnxprune.runtime.child import Caps, Child, Stopped
from onnxprune.runtime.ports import Feeds, InputSpec, input_specs
from onnxprune.runtime.reasons import memory_told

CAPS = Caps()
"""For what a file does not say."""
LEAST_SECONDS = 1.0
"""For every attempt, however many there were."""
READING_SECONDS = 6.0
"""For finding out how much a file says that it multiplies."""
MACS_PER_SECOND = 2e9
"""What a slow machine makes of a model that does nothing but multiply."""
MACS_PER_BYTE = 25
"""Of activations: what takes more memory than that is not what a network is made of."""
MOST_SECONDS, MOST_ROOM = 600.0, 8 << 30
"""For however much it multiplies."""
BYTES_PER_SECOND, NODES_PER_SECOND = 1e8, 1e3
"""Of weights and nodes that are got ready to run, on a machine five times as slow as the one that ran 17,000 nodes in
3.3 s."""
Model = onnx.ModelProto | bytes | str | Path
Feeding = Callable[[Sequence[InputSpec]], Feeds]
REMEDY = "if you know where the model comes from, trust it (--trusted)"


@dataclass
class Rehearsal:
    """How a model is tried out.

    Attributes:
        label: what messages call it.
        trusted: whether it is not: then what would be done in a child is done here.
        spent: seconds that children have taken in vain.
    """

    label: str
    trusted: bool = False
    spent: float = field(default=0.0, init=False)

    def observe(self, graph: Graph, feeds: Feeds) -> Observed:
        """As `shapes.observe`.

        Raises:
            Stopped: the run took too much, or ended the child.
            ModelError: the model does not run on these inputs.
        """
        if self.trusted:
            return observe(graph, feeds, name=self.label)
        said = json.loads(self._result(self._child(_observed, graph.model, feeds)))
        shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
        return Observed(shapes, follow(graph, shapes), Ran(said["bodies"], said["sums"]))

    def run(self, model: Model, feeds: Feeds | Feeding, outputs: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Run the model as it is. Returns some of its outputs, plain numbers all.

        Args:
            model: as `open_session` takes it.
            feeds: what it is fed, or what makes that for its inputs.
            outputs: which.

        Raises:
            Stopped, ModelError: as `observe`.
        """
        job = partial(_run, outputs=tuple(outputs))
        said = job(model, feeds, self.label) if self.trusted else self._result(self._child(job, model, feeds))
        with np.load(io.BytesIO(said), allow_pickle=False) as found:
            return {name: found[str(k)] for k, name in enumerate(outputs)}

    def stopping(self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, str]:
        """As `stops.stopping`.

        Raises:
            Stopped: to find out took too much, or ended the child.
        """
        if self.trusted:
            return stopping(model, shapes)
        found: dict[str, str] = json.loads(self._result(self._child(_stopping, model, {}, shapes)))
        return found

    @contextlib.contextmanager
    def running(self, model: onnx.ModelProto, feeds: Feeds) -> Iterator[None]:
        """As `run`, beside what is done in the block. What else is wrong with the model is told when it is run here."""
        if self.trusted:
            yield
            return
        work = self._child(_run, model, feeds)
        try:
            yield
            with unless_refused():
                work.result()
        finally:
            work.kill()

    def _child(self, job: inside.Job, model: Model, feeds: Feeds | Feeding, *more_args: object) -> Child:
        install.require_ort()  # once, for the child too
        caps = _with_weights(replace(CAPS, seconds=max(LEAST_SECONDS, CAPS.seconds - self.spent)), _size(model))
        if isinstance(model, onnx.ModelProto):
            caps = replace(caps, seconds=caps.seconds + len(model.graph.node) / NODES_PER_SECOND)
        more = partial(_honest, model, feeds, caps)
        return Child(
            job,
            [model, feeds, self.label, *more_args],
            label=self.label,
            what="its first run",
            remedy=REMEDY,
            caps=caps,
            more=more,
        )

    def _result(self, work: Child) -> bytes:
        begin = time.monotonic()
        try:
            return work.result()
        except ModelError:
            self.spent += time.monotonic() - begin
            raise


@contextlib.contextmanager
def unless_refused(otherwise: str = "") -> Iterator[None]:
    """The block, as far as the model runs; but what has ended a child is not tried again. `otherwise` is said of it
    where it ran with sizes of our own making, of which too much is no fault of the file's."""
    try:
        yield
    except Stopped as stopped:
        if otherwise:
            raise Stopped(otherwise) from stopped
        raise
    except ModelError:
        pass


def _size(model: Model) -> int:
    """Bytes of the weights, as far as that is known at once: what lies beside a file is not."""
    if isinstance(model, onnx.ModelProto):
        return weight_bytes(model)
    if isinstance(model, bytes):
        return len(model)
    return os.path.getsize(model) if os.path.exists(model) else 0


def _with_weights(caps: Caps, size: int) -> Caps:
    """What a model may take besides, that has so many bytes of weights."""
    return Caps(caps.seconds + size / BYTES_PER_SECOND, caps.room + 4 * size)


def _honest(model: Model, feeds: Feeds | Feeding, caps: Caps) -> Caps:
    """What a model may take that multiplies as much as its file says."""
    try:
        said = json.loads(child.call(_stated, model, feeds, label="", what="", caps=Caps(READING_SECONDS, caps.room)))
    except ModelError:
        return caps
    caps = _with_weights(caps, said["size"] - _size(model))
    seconds, room = min(said["macs"] / MACS_PER_SECOND, MOST_SECONDS), min(said["macs"] / MACS_PER_BYTE, MOST_ROOM)
    return Caps(caps.seconds + seconds, caps.room + int(room))


def _stated(model: Model, feeds: Feeds | Feeding) -> bytes:
    if isinstance(model, bytes):
        proto = onnx.ModelProto.FromString(model)
    else:
        proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model, load_external_data=False)
    feeds = feeds(input_specs(proto)) if callable(feeds) else feeds
    return json.dumps({"macs": stated_macs(proto, feeds), "size": weight_bytes(proto)}).encode()


def _observed(model: onnx.ModelProto, feeds: Feeds, name: str) -> bytes:
    with memory_told():
        found = observe(Graph(model), feeds, name=name)
    return json.dumps({"shapes": found.shapes, "bodies": found.ran.bodies, "sums": found.ran.sums}).encode()


def _stopping(model: onnx.ModelProto, feeds: Feeds, name: str, shapes: Mapping[str, Sequence[int]] | None) -> bytes:
    with memory_told():
        return json.dumps(stopping(model, shapes)).encode()


def _run(model: Model, feeds: Feeds | Feeding, name: str, outputs: Sequence[str] = ()) -> bytes:
    with memory_told():
        session = sessions.open_session(model, pack=False, name=name)
        made = dict(zip(session.outputs, session.run(feeds(session.inputs) if callable(feeds) else feeds), strict=True))
    kept = io.BytesIO()
    np.savez(kept, **{str(k): made[output] for k, output in enumerate(outputs)})
    return kept.getvalue()
