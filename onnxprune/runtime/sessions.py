"""The one place that makes sessions of ONNX Runtime.

It knows how ORT misleads: what was asked for is compared with what started (`accelerated`), and the nodes each
provider took are counted. It knows nothing of pruning.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from onnxprune.errors import FileError, LoadError, ModelError, RunError, UsageError, is_utf8, one_line
from onnxprune.parallel import Stopped, threads_here
from onnxprune.protobuf import serialize
from onnxprune.protobuf.external import write_external
from onnxprune.protobuf.nodes import has_loops
from onnxprune.runtime import accelerated, install, ports, stopping
from onnxprune.runtime.accelerated import Placed
from onnxprune.runtime.providers import CPU, check_providers, options_by_provider, provider_name, provider_of
from onnxprune.runtime.reasons import reason
from onnxprune.runtime.weights import (
    ModelAndWeights,
    to_feed,
    with_external_weights,
    with_weights_as_inputs,
)

FEW_WEIGHTS = 2000
"""Number of weights up to which ORT may go without packing them."""
LOOP_SECONDS = 60.0
"""Of a run for every sample, where a loop may have no end."""
SHARED_BYTES = 1 << 23
"""Bytes of weights from which they are handed to ORT beside the model."""
PACKED_BYTES = 1 << 28
"""Bytes of weights up to which they are packed unless somebody says so."""


class Session:
    """A model, loaded and ready to run.

    Attributes:
        inputs: what `run` must be fed.
        outputs: the names of what it returns.
        providers: ORT's names, the first is the one that was asked for.
        nodes: every node after ORT's optimisation with the provider that runs it; None where it was not recorded
            (the CPU alone, unless asked for) or this ORT cannot tell.
        assignment: provider → number of its nodes; None as above.
        provider_options: provider → its options as they are in force, as ORT tells.
        name: what messages call the model.
        raw: the `onnxruntime.InferenceSession`.
    """

    def __init__(
        self,
        raw: Any,
        *,
        name: str = "model",
        nodes: tuple[Placed, ...] | None = None,
        keep: object = None,
        weights: Mapping[str, np.ndarray] | None = None,
        fed: Collection[str] = (),
        otherwise: Callable[[], Session] | None = None,
        loops: bool = False,
    ) -> None:
        self.raw = raw
        self.name = name
        self.nodes = nodes
        self.assignment = None if nodes is None else dict(Counter(n.provider for n in nodes))
        self.provider_options = _in_force(raw)
        self._weights = dict(weights or {})  # what ORT reads where it is
        self._fed = {key: self._weights[key] for key in fed}
        self._otherwise, self._loops = otherwise, loops
        self.inputs = tuple(ports.spec_of_session(port) for port in raw.get_inputs() if port.name not in self._fed)
        self.outputs = tuple(port.name for port in raw.get_outputs())
        self.providers = tuple(raw.get_providers())
        self._keep = keep  # the temporary folder that ORT may have mapped

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[Any]:
        """The named outputs, or all.

        Raises:
            RunError: ORT refused the feeds or failed; one line with its reason.
            ModelError: it takes too long.
        """
        seconds = LOOP_SECONDS * max((len(v) for v in feeds.values() if np.ndim(v)), default=1) if self._loops else inf
        names, options = None if outputs is None else list(outputs), install.require_ort().RunOptions()
        try:
            with stopping.stoppable(options, seconds):
                return list(self.raw.run(names, {**self._fed, **feeds}, options))
        except stopping.Halted as halted:
            if str(halted) == stopping.SIGNAL:  # whoever heard of it wants us to go on
                return self.run(feeds, outputs)
            if str(halted) == stopping.UNWANTED:
                raise Stopped from halted
            raise ModelError(
                one_line(f"{self.name}: a run took more than {seconds:g} s; simplify its Loop")
            ) from halted
        except Exception as error:
            if self._otherwise is not None:  # a kernel may want its weights constant
                other, self._fed, self._otherwise = self._otherwise(), {}, None
                self.raw = other.raw
                return self.run(feeds, outputs)
            given = ", ".join(f"{k} {getattr(v, 'dtype', '')}{list(np.shape(v))}" for k, v in feeds.items())
            raise RunError(
                one_line(f"{self.name}: cannot be run with {given}: {reason(error)}; check the inputs' shapes")
            ) from error


def open_session(
    model: ModelProto | bytes | str | Path,
    *,
    providers: Sequence[str] = ("cpu",),
    provider_options: Mapping[str, Mapping[str, object]] | None = None,
    threads: int | None = None,
    optimise: bool = True,
    pack: bool | None = None,
    spinning: bool = False,
    record: bool = False,
    name: str = "model",
    profile: Path | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    feed: bool = False,
    adjust: Callable[[Any], None] | None = None,
) -> Session:
    """A session on exactly the provider that was asked for.

    Args:
        model: in memory, serialised, or a path. A model too large for protobuf goes through a temporary file.
        providers: short names, the wanted one first; the CPU takes the nodes that the others leave.
        provider_options: by provider, what ORT's documentation of that provider lists: {"cuda": {"use_tf32": 0}}.
        threads: for one operator; None leaves the choice to ORT.
        optimise: whether ORT may fuse and fold; not worth it for a run or two of something small.
        pack: whether weights are packed once for all runs, which takes as long as a run and as much memory as the
            weights; None: where it optimises, up to `PACKED_BYTES`.
        spinning: whether idle threads burn cycles; off on a busy machine.
        record: note which provider runs which node on the CPU too; elsewhere it is always noted.
        name: what messages call the model.
        profile: where ORT's profile of the runs is to go, the start of a file name; None: none is made.
        weights: those that lie beside the model, as `add_external_weights` returned them (on the CPU).
        feed: feed large weights at every run instead of making them constants: nothing is copied, but nothing is
            packed or folded either. For a run or two on the CPU, with `optimise` off. Those of linear layers are fed
            anyhow, where weights are more than `PACKED_BYTES` and nobody wants them packed.
        adjust: sets further options, on ORT's `SessionOptions`, last of all.

    Raises:
        ProviderError: a provider is not in this build, did not start, or took no node.
        ModelError: ORT does not load the model.
        FileError: `model` is a path and there is no such file.
        UsageError: an unknown provider, an option that it does not know, or fewer than one thread.
    """
    check_providers(providers, provider_options)
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    wanted = tuple(dict.fromkeys(provider_name(alias) for alias in providers))
    tuned = options_by_provider(provider_options, wanted)
    ort = install.require_ort()
    accelerated.check_build(ort, wanted)
    if isinstance(model, (str, Path)):
        if not Path(model).is_file():
            raise FileError(one_line(f"{model}: there is no such file; check the path"))
        if not is_utf8(model):  # no path that ORT takes
            model = Path(model).read_bytes()
    apart = _apart(model, weights) if wanted == (CPU,) else None
    fed: set[str] = set()
    if apart is not None:
        fed = set(apart.weights) if feed else set() if pack else to_feed(apart, PACKED_BYTES)
        if pack is None:
            pack = optimise and sum(w.nbytes for k, w in apart.weights.items() if k not in fed) <= PACKED_BYTES
    way = _Way(wanted, tuned, threads, optimise, optimise if pack is None else pack, spinning, record, profile, adjust)
    if apart is not None and fed:
        return _fed_session(ort, apart, fed, way, name)
    return _opened(ort, model, apart, way, name)


@dataclass(frozen=True)
class _Way:
    """How a session is to run: what was asked for, checked. `providers` are ORT's names."""

    providers: tuple[str, ...]
    tuned: Mapping[str, Mapping[str, str]]
    threads: int | None
    optimise: bool
    pack: bool
    spinning: bool
    record: bool
    profile: Path | None
    adjust: Callable[[Any], None] | None = None

    def options(self, ort: ModuleType, weights: Mapping[str, np.ndarray], few: bool) -> Any:
        """ORT's options.

        Args:
            ort: the `onnxruntime` module.
            weights: those that lie beside the model.
            few: whether the model has few. What ORT does instead of packing takes it time that grows with the square
                of their number.
        """
        made = ort.SessionOptions()
        if weights:
            values = [ort.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
            made.add_external_initializers(list(weights), values)
        made.log_severity_level = 4  # errors come as exceptions; ORT would print them a second time
        levels = ort.GraphOptimizationLevel
        made.graph_optimization_level = levels.ORT_ENABLE_ALL if self.optimise else levels.ORT_DISABLE_ALL
        made.inter_op_num_threads = 1
        here = threads_here(self.threads)
        if here is not None:
            made.intra_op_num_threads = here
        if few and not self.pack:
            unpacked(made)
        if not self.spinning:
            made.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not all(provider_of(name).memory_patterns for name in self.providers):
            made.enable_mem_pattern = False
        if self.profile is not None:
            made.enable_profiling, made.profile_file_prefix = True, str(self.profile)
        if self.adjust is not None:
            self.adjust(made)
        return made


def unpacked(options: Any) -> None:
    """For `adjust`: no weight is packed, and those beside a file stay there. Where they are at most `FEW_WEIGHTS`."""
    options.add_session_config_entry("session.disable_prepacking", "1")


def _opened(
    ort: ModuleType, model: ModelProto | bytes | str | Path, apart: ModelAndWeights | None, way: _Way, name: str
) -> Session:
    """The session; `apart` is the model with its large weights beside it, where they are."""
    weights = {} if apart is None else apart.weights
    few = isinstance(model, ModelProto) and len(model.graph.initializer) <= FEW_WEIGHTS
    options = partial(way.options, ort, weights, few)
    with contextlib.ExitStack() as undo:
        source, folder = _loadable(model, undo) if apart is None else (apart.model.SerializeToString(), None)
        if way.providers == (CPU,):
            raw, nodes = _on_cpu(ort, source, options(), way.record, name)
        else:
            raw, nodes = accelerated.start(ort, source, options, way.providers, way.tuned, name)
        proto = model if apart is None else apart.model
        loops = isinstance(proto, ModelProto) and has_loops(proto.graph)
        session = Session(raw, name=name, nodes=nodes, keep=folder, weights=weights, loops=loops)
        undo.pop_all()
    return session


def _on_cpu(
    ort: ModuleType, source: bytes | str, options: Any, record: bool, name: str
) -> tuple[Any, tuple[Placed, ...] | None]:
    """A session on the CPU alone, and its nodes where they are recorded."""
    if record:
        options.add_session_config_entry(*accelerated.RECORD)
    try:
        raw = ort.InferenceSession(source, options, providers=[CPU])
    except Exception as error:
        raise LoadError(one_line(f"{name}: does not load in ONNX Runtime: {reason(error)}")) from error
    return raw, accelerated.placed(raw) if record else None


def _apart(model: ModelProto | bytes | str | Path, weights: Mapping[str, np.ndarray] | None) -> ModelAndWeights | None:
    """The model with its large weights beside it; None where they may as well be inside."""
    if not isinstance(model, ModelProto):
        return None
    if weights is not None:
        return ModelAndWeights(model, weights)
    return with_external_weights(model) if serialize.weight_bytes(model) >= SHARED_BYTES else None


def parted(model: ModelProto) -> ModelAndWeights:
    """The model without its large weights, to be changed where it is (its own are not), and these beside it: what
    `open_session` takes. One with few bytes of them is a copy with all inside."""
    return _apart(model, None) or ModelAndWeights(serialize.copied(model))


def open_with_outputs(model: ModelProto, names: Sequence[str], **how: Any) -> Session:
    """A session that also returns the tensors `names`, as `with_outputs`; on the CPU, and no weight is copied.

    Args:
        model: left as it is.
        names: tensors of the outermost graph.
        how: as `open_session`.
    """
    apart = _apart(model, None)
    if apart is None:
        return open_session(with_outputs(model, names), **how)
    return open_session(with_outputs(apart.model, names), weights=apart.weights, **how)


def _fed_session(ort: ModuleType, apart: ModelAndWeights, fed: Collection[str], way: _Way, name: str) -> Session:
    """A session that is fed with some of the weights; one that has them as constants where a kernel wants that."""

    def constant() -> Session:
        return _opened(ort, apart.model, apart, way, name)

    others = {key: value for key, value in apart.weights.items() if key not in fed}
    model = with_weights_as_inputs(apart, fed)
    try:
        session = _opened(ort, model, ModelAndWeights(model, others), way, name)
    except ModelError:
        return constant()
    return Session(
        session.raw, name=name, nodes=session.nodes, weights=apart.weights, fed=fed, otherwise=constant,
        loops=has_loops(apart.model.graph),
    )  # fmt: skip


def _loadable(
    model: ModelProto | bytes | str | Path, undo: contextlib.ExitStack
) -> tuple[bytes | str, tempfile.TemporaryDirectory[str] | None]:
    """What ORT can load, and the temporary folder that must outlive the session, if any."""
    if isinstance(model, bytes):
        return model, None
    if isinstance(model, (str, Path)):
        return str(model), None
    if serialize.weight_bytes(model) <= serialize.MAX_PROTOBUF:
        with contextlib.suppress(Exception):  # EncodeError or ValueError: too large after all
            return model.SerializeToString(), None
    folder = tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True)
    undo.callback(folder.cleanup)
    bare = write_external(model, folder.name)
    path = Path(folder.name, "model.onnx")
    try:
        path.write_bytes(bare.SerializeToString())
    except OSError as error:
        raise FileError(one_line(f"{path}: cannot be written: {error.strerror}; free some space")) from error
    return str(path), folder


def _in_force(raw: Any) -> dict[str, dict[str, str]]:
    """Provider -> its options, as ORT tells."""
    try:
        return {str(p): {str(k): str(v) for k, v in o.items()} for p, o in raw.get_provider_options().items()}
    except Exception:  # a stand-in without the method
        return {}


def returning(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model, or where it does not return all tensors `names` in this order, as the first ones, a copy that does."""
    present = [port.name for port in model.graph.output]
    return model if present[: len(names)] == list(names) else with_outputs(model, names)


def with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """A copy of `model` that also returns the tensors `names`, after its own outputs.

    The weights are copied once. Where the model declares a tensor's type it is used; ORT infers the others.

    Raises:
        UsageError: a name is not a tensor of the outermost graph.
    """
    graph = model.graph
    declared = {port.name: port for port in graph.value_info}
    declared |= {port.name: port for port in graph.input}
    stored = {t.name: t for t in graph.initializer}
    known = {name for node in graph.node for name in node.output if name} | set(declared) | set(stored)
    present = {port.name for port in graph.output}
    copy = ModelProto()
    copy.CopyFrom(model)
    for name in names:
        if name in present:
            continue
        if name not in known:
            raise UsageError(one_line(f"{name!r} is not a tensor of the model; check its spelling"))
        if name in declared:
            port = declared[name]
        elif name in stored:
            port = helper.make_tensor_value_info(name, stored[name].data_type, list(stored[name].dims))
        else:
            port = helper.make_empty_tensor_value_info(name)
        copy.graph.output.append(port)
        present.add(name)
    return copy
