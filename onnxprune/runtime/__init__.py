"""ONNX Runtime, and the only place that makes its sessions.

It knows how ORT is installed and how it misleads: `get_available_providers()` describes the build and not
the machine, and a provider that cannot start is replaced by the CPU without an error. So a session is
compared with what was asked for, and the nodes each provider took are counted. ORT is imported inside the
functions: reading and writing models works without it.

CUDA has been run on a GPU (H200, ORT 1.31.1, CUDA 13; `tests/measure/test_cuda.py` does it again where there is one).
TensorRT and the other accelerators are tested against a stand-in for the `onnxruntime` module only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from onnxprune import files
from onnxprune.errors import FileError, ModelError, ProviderError, UsageError
from onnxprune.files import one_line
from onnxprune.parallel import threads_here
from onnxprune.runtime import ports
from onnxprune.runtime import weights as weighing

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
_CPU = PROVIDERS["cpu"]
_ALIASES = {name: alias for alias, name in PROVIDERS.items()}

# Distributions that all install the same `onnxruntime` package, over one another.
_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-silicon",
)


def installed_distributions() -> tuple[str, ...]:
    """The installed distributions that bring an `onnxruntime` package; more than one is a broken install."""
    found = []
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            found.append(name)
    return tuple(found)


_sound: dict[str, ModuleType] = {}
"""The module once its install was looked at: a look at the installed distributions takes as long as a session."""


def require_ort() -> ModuleType:
    """The `onnxruntime` module.

    Raises:
        ProviderError: it is not installed, installed twice under two names, or does not load; with the
            commands that help.
    """
    module = sys.modules.get("onnxruntime")
    if module is not None and module is _sound.get("onnxruntime"):
        return module
    found = installed_distributions()
    if len(found) > 1:
        extra = "cpu" if "onnxruntime-gpu" not in found else "gpu"
        raise ProviderError(
            f"{' and '.join(found)} are both installed and overwrite each other; run "
            f'`pip uninstall -y {" ".join(found)}` and then `pip install "onnxprune[{extra}]"`'
        )
    try:
        _sound["onnxruntime"] = importlib.import_module("onnxruntime")
        return _sound["onnxruntime"]
    except ImportError as error:
        if found:
            raise ProviderError(
                one_line(
                    f"{found[0]} is installed but does not load: {error}; run "
                    f"`pip install --force-reinstall {found[0]}`"
                )
            ) from error
        raise ProviderError(
            "ONNX Runtime is not installed; run "
            '`pip install "onnxprune[gpu]"` (NVIDIA GPU) or `pip install "onnxprune[cpu]"`'
        ) from error


def provider_name(alias: str) -> str:
    """ORT's name of a provider: `cuda` gives `CUDAExecutionProvider`.

    Raises:
        UsageError: there is no such provider.
    """
    if alias in _ALIASES:
        return alias
    try:
        return PROVIDERS[alias.lower()]
    except KeyError:
        raise UsageError(one_line(f"unknown provider {alias!r}; choose from {', '.join(PROVIDERS)}")) from None


@cache
def refusal(ir_version: int, opset: int) -> str | None:
    """Why the installed ORT does not run models of this IR version and opset, or None.

    ORT says nowhere what it supports, so it is asked with a model of one node. None also when ORT is not
    installed: then nobody knows.
    """
    try:
        ort = require_ort()
    except ProviderError:
        return None
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    probe = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(probe.SerializeToString(), options, providers=[_CPU])
    except Exception as error:
        return _reason(error)
    return None


def parse_provider_options(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """`cuda.use_tf32=0` and the like, by provider: what `open_session` takes.

    Raises:
        UsageError: it is spelled otherwise, or there is no such provider.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        alias, _, name = key.partition(".")
        if not (equals and name and value):
            raise UsageError(one_line(f"{text!r} is not PROVIDER.OPTION=VALUE such as cuda.use_tf32=0"))
        found.setdefault(provider_name(alias), {})[name] = value
    return found


def check_providers(providers: Sequence[str], options: Mapping[str, Mapping[str, object]] | None = None) -> None:
    """Refuse what `open_session` would refuse on any machine.

    Raises:
        UsageError: an unknown provider, or options of one that is not among them.
    """
    if not providers:
        raise UsageError(f"no provider given; choose from {', '.join(PROVIDERS)}")
    _options_by_provider(options, [provider_name(alias) for alias in providers])


def _options_by_provider(
    given: Mapping[str, Mapping[str, object]] | None, wanted: Sequence[str]
) -> dict[str, dict[str, str]]:
    """The options under ORT's names of the providers, as text, which is what ORT reads."""
    found: dict[str, dict[str, str]] = {}
    for alias, options in (given or {}).items():
        name = provider_name(alias)
        if not options:
            continue
        if name not in wanted:
            raise UsageError(one_line(f"options are given for {_ALIASES[name]}, which is not among the providers"))
        if name == _CPU:  # ORT takes anything here, and ignores it
            raise UsageError(one_line(f"the cpu has no provider options; drop {next(iter(options))!r}"))
        found[name] = {key: str(int(v) if isinstance(v, bool) else v) for key, v in options.items()}
    return found


# --------------------------------------------------------------------------------------------- sessions


@dataclass(frozen=True)
class Placed:
    """A node as ORT runs it, fused or rewritten as the case may be, and the provider that runs it."""

    node: str
    op_type: str
    provider: str


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
        fed: bool = False,
        otherwise: Callable[[], Session] | None = None,
    ) -> None:
        self.raw = raw
        self.name = name
        self.nodes = nodes
        self.assignment = None if nodes is None else dict(Counter(n.provider for n in nodes))
        self.provider_options = _in_force(raw)
        self._weights = dict(weights or {})  # what ORT reads where it is
        self._fed = self._weights if fed else {}
        self._otherwise = otherwise
        self.inputs = tuple(ports.spec_of_session(port) for port in raw.get_inputs() if port.name not in self._fed)
        self.outputs = tuple(port.name for port in raw.get_outputs())
        self.providers = tuple(raw.get_providers())
        self._keep = keep  # the temporary folder that ORT may have mapped

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[Any]:
        """The named outputs, or all.

        Raises:
            ModelError: ORT refused the feeds or failed; one line with its reason.
        """
        try:
            return list(self.raw.run(None if outputs is None else list(outputs), {**self._fed, **feeds}))
        except Exception as error:
            if self._otherwise is not None:  # a kernel may want its weights constant
                other, self._fed, self._otherwise = self._otherwise(), {}, None
                self.raw = other.raw
                return self.run(feeds, outputs)
            given = ", ".join(f"{k} {getattr(v, 'dtype', '')}{list(np.shape(v))}" for k, v in feeds.items())
            raise ModelError(
                one_line(f"{self.name}: cannot be run with {given}: {_reason(error)}; check the inputs' shapes")
            ) from error


FEW_WEIGHTS = 2000
SHARED_BYTES = 1 << 23
"""Bytes of weights from which they are handed to ORT beside the model."""


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
) -> Session:
    """A session on exactly the provider that was asked for.

    Args:
        model: in memory, serialised, or a path. A model too large for protobuf goes through a temporary file.
        providers: short names, the wanted one first; the CPU takes the nodes that the others leave.
        provider_options: by provider, what ORT's documentation of that provider lists: {"cuda": {"use_tf32": 0}}.
        threads: for one operator; None leaves the choice to ORT.
        optimise: whether ORT may fuse and fold; not worth it for a run or two of something small.
        pack: whether weights are packed once for all runs, which takes as long as a run; None: where it optimises.
        spinning: whether idle threads burn cycles; off on a busy machine.
        record: note which provider runs which node on the CPU too; elsewhere it is always noted.
        name: what messages call the model.
        profile: where ORT's profile of the runs is to go, the start of a file name; None: none is made.
        weights: what `lend` returned for the model (on the CPU).
        feed: feed large weights at every run instead of making them constants: nothing is copied, but nothing is
            packed or folded either. For a run or two on the CPU, with `optimise` off.

    Raises:
        ProviderError: a provider is not in this build, did not start, or took no node.
        ModelError: ORT does not load the model.
        FileError: `model` is a path and there is no such file.
        UsageError: an unknown provider, an option that it does not know, or fewer than one thread.
    """
    check_providers(providers, provider_options)
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    wanted = list(dict.fromkeys(provider_name(alias) for alias in providers))
    tuned = _options_by_provider(provider_options, wanted)
    ort = require_ort()
    _check_build(ort, wanted)
    if isinstance(model, (str, Path)) and not Path(model).is_file():
        raise FileError(one_line(f"{model}: there is no such file; check the path"))

    light: weighing.ModelAndWeights | None = None
    if isinstance(model, ModelProto) and wanted == [_CPU]:
        if weights is not None:
            light = weighing.ModelAndWeights(model, weights)
        elif files.weight_bytes(model) >= SHARED_BYTES:
            light = weighing.with_external_weights(model)
    kept = {} if light is None else light.weights
    if feed and light is not None and kept:
        return _fed_session(light, partial(open_session, threads=threads, optimise=optimise, pack=pack, name=name))
    # What ORT does instead of packing takes it time that grows with the square of the number of weights.
    few = isinstance(model, ModelProto) and len(model.graph.initializer) <= FEW_WEIGHTS

    def options() -> Any:
        made = ort.SessionOptions()
        if kept:
            values = [ort.OrtValue.ortvalue_from_numpy(value) for value in kept.values()]
            made.add_external_initializers(list(kept), values)
        made.log_severity_level = 4  # errors come as exceptions; ORT would print them a second time
        levels = ort.GraphOptimizationLevel
        made.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        made.inter_op_num_threads = 1
        here = threads_here(threads)
        if here is not None:
            made.intra_op_num_threads = here
        if few and not (optimise if pack is None else pack):
            made.add_session_config_entry("session.disable_prepacking", "1")
        if not spinning:
            made.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if PROVIDERS["directml"] in wanted:  # it has none; ORT would switch them off with a warning
            made.enable_mem_pattern = False
        if profile is not None:
            made.enable_profiling, made.profile_file_prefix = True, str(profile)
        return made

    with contextlib.ExitStack() as undo:
        if light is None:
            source, keep = _loadable(model, undo)
        else:
            source, keep = light.model.SerializeToString(), None
        if wanted == [_CPU]:
            made = options()
            if record:
                made.add_session_config_entry(*_RECORD)
            try:
                raw = ort.InferenceSession(source, made, providers=wanted)
            except Exception as error:
                raise ModelError(one_line(f"{name}: does not load in ONNX Runtime: {_reason(error)}")) from error
            nodes = _placed(raw) if record else None
        else:
            raw, nodes = _accelerated(ort, source, options, wanted, tuned, name)
        session = Session(raw, name=name, nodes=nodes, keep=keep, weights=kept)
        undo.pop_all()
    return session


def _fed_session(light: weighing.ModelAndWeights, opened: Callable[..., Session]) -> Session:
    """A session that is fed with the model's weights; one that has them as constants where a kernel wants that."""
    constant = partial(opened, light.model, weights=light.weights)
    try:
        session = opened(weighing.fed(light))
    except ModelError:
        return constant()
    return Session(session.raw, name=session.name, weights=light.weights, fed=True, otherwise=constant)


def _loadable(
    model: ModelProto | bytes | str | Path, undo: contextlib.ExitStack
) -> tuple[bytes | str, tempfile.TemporaryDirectory[str] | None]:
    """What ORT can load, and the temporary folder that must outlive the session, if any."""
    if isinstance(model, bytes):
        return model, None
    if isinstance(model, (str, Path)):
        return str(model), None
    if files.weight_bytes(model) <= files.MAX_PROTOBUF:
        with contextlib.suppress(Exception):  # EncodeError or ValueError: too large after all
            return model.SerializeToString(), None
    folder = tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True)
    undo.callback(folder.cleanup)
    light = files.write_external(model, folder.name)
    path = Path(folder.name, "model.onnx")
    try:
        path.write_bytes(light.SerializeToString())
    except OSError as error:
        raise FileError(one_line(f"{path}: cannot be written: {error.strerror}; free some space")) from error
    return str(path), folder


def _check_build(ort: ModuleType, wanted: Sequence[str]) -> None:
    available = ort.get_available_providers()
    for name in wanted:
        if name in available:
            continue
        alias = _ALIASES[name]
        have = ", ".join(_ALIASES.get(p, p) for p in available)
        remedy = {
            "cuda": 'run `pip uninstall -y onnxruntime` and `pip install "onnxprune[gpu]"`',
            "tensorrt": 'run `pip uninstall -y onnxruntime` and `pip install "onnxprune[gpu]"`',
            "openvino": "install onnxruntime-openvino instead of onnxruntime",
            "directml": "install onnxruntime-directml instead of onnxruntime (Windows only)",
            "coreml": "install onnxruntime on macOS",
        }.get(alias, "reinstall onnxruntime")
        raise ProviderError(f"provider {alias} is not in onnxruntime {ort.__version__} (which has {have}); {remedy}")


_RECORD = ("session.record_ep_graph_assignment_info", "1")


def _accelerated(
    ort: ModuleType,
    source: bytes | str,
    options: Callable[[], Any],
    wanted: list[str],
    tuned: Mapping[str, Mapping[str, str]],
    name: str,
) -> tuple[Any, tuple[Placed, ...] | None]:
    """A session whose first provider really is the one asked for, and who took which nodes."""
    first, alias = wanted[0], _ALIASES[wanted[0]]
    made = options()
    with contextlib.suppress(Exception):  # an ORT too old to record it: then only the providers are compared
        made.add_session_config_entry(*_RECORD)
    listed = [(p, dict(tuned[p])) if p in tuned else p for p in dict.fromkeys([*wanted, _CPU])]
    with _captured_stderr() as said:
        if any(p in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]) for p in wanted):
            preload = getattr(ort, "preload_dlls", None)
            if preload is not None:
                # A missing library shows below, with ORT's own reason; here ORT would print it to standard output.
                with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                    preload()
        try:
            # enable_fallback=0: otherwise ORT prints a banner and tries again on the CPU
            raw = ort.InferenceSession(source, made, providers=listed, enable_fallback=0)
        except Exception as error:
            try:
                ort.InferenceSession(source, options(), providers=[_CPU])
            except Exception as fault:
                raise ModelError(one_line(f"{name}: does not load in ONNX Runtime: {_reason(fault)}")) from fault
            if tuned and "provider option" in str(error).lower():
                raise UsageError(one_line(f"{name}: {alias} refuses an option: {_reason(error)}")) from error
            raise ProviderError(
                one_line(f"{name}: provider {alias} does not start: {_reason(error)}; {_remedy(alias)}")
            ) from error
    got = list(raw.get_providers())
    if not got or got[0] != first:
        fallen = _ALIASES.get(got[0], got[0]) if got else "nothing"
        why = f" ({_reason(said[0])})" if said and said[0] else ""
        raise ProviderError(
            one_line(f"{name}: asked for {alias}, but ONNX Runtime fell back to {fallen}{why}; {_remedy(alias)}")
        )
    nodes = _placed(raw)
    if nodes is not None and not any(n.provider == first for n in nodes):
        spread = spread_in_words(Counter(n.provider for n in nodes))
        raise ProviderError(
            one_line(f"{name}: provider {alias} took no node (nodes by provider: {spread}); use --providers cpu")
        )
    return raw, nodes


def spread_in_words(assignment: Mapping[str, int]) -> str:
    """`cuda 45, cpu 2`: how many nodes each provider runs."""
    return ", ".join(f"{_ALIASES.get(p, p)} {n}" for p, n in sorted(assignment.items(), key=lambda x: (-x[1], x[0])))


def _remedy(alias: str) -> str:
    if alias in ("cuda", "tensorrt"):
        return "check `nvidia-smi` and that CUDA and cuDNN fit onnxruntime-gpu, or use --providers cpu"
    return "check its driver and libraries, or use --providers cpu"


def _placed(raw: Any) -> tuple[Placed, ...] | None:
    """Every node and its provider, where this ORT records it."""
    try:
        parts = raw.get_provider_graph_assignment_info()
        return tuple(Placed(n.name, n.op_type, part.ep_name) for part in parts for n in part.get_nodes()) or None
    except Exception:  # an ORT without the method, or one that recorded nothing
        return None


def _in_force(raw: Any) -> dict[str, dict[str, str]]:
    try:
        return {str(p): {str(k): str(v) for k, v in o.items()} for p, o in raw.get_provider_options().items()}
    except Exception:  # a stand-in without the method
        return {}


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Collects what native code writes to file descriptor 2: there ORT tells why a provider did not start.

    The list receives one string when the block ends. Other threads' words land there too, so the block is
    kept short and only wraps the making of a session.
    """
    said: list[str] = []
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, AttributeError, ValueError):  # no standard error at all
        yield said
        return
    with tempfile.TemporaryFile() as shelf:
        os.dup2(shelf.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            shelf.seek(0)
            said.append(shelf.read(100_000).decode("utf-8", "replace").strip())


def _reason(error: object) -> str:
    """What ORT means, in one line: its codes, colours, source paths and C++ signatures left out."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line for line in text.splitlines() if line.strip()]
    text = next((line for line in lines if "rror" in line), lines[0] if lines else type(error).__name__)
    text = re.sub(r"^.*?\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^\d{4}-\d\d-\d\d [\d:.]+ ", "", text)
    text = re.sub(r"\[E:onnxruntime:[^\]]*\] ", "", text)
    text = re.sub(r"(/\S*)?/onnxruntime(_src)?/\S+:\d+ .*?\) (?=[A-Z])", "", text)
    return one_line(text)[:300].rstrip(" .")


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


# --------------------------------------------------------------------------------------------- versions


def versions() -> dict[str, str]:
    """What a report must say about the machine and its software."""
    found = installed_distributions()
    try:
        ort = f"{require_ort().__version__} ({found[0] if found else 'unknown distribution'})"
    except ProviderError:
        ort = " and ".join(found) if found else "not installed"
    return {
        "onnx": onnx.__version__,
        "onnxruntime": ort,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return one_line(line.partition(":")[2])
    return platform.processor() or platform.machine()
