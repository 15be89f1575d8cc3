"""Execution providers: the table of what is true of each, and their options as ONNX Runtime reads them.

A provider is one entry. Knows neither models nor sessions, and imports neither numpy nor onnx: `--help` lists the
names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.errors import UsageError, one_line, unknown

_GPU_BUILD = "run `pip uninstall -y onnxruntime` and `pip install onnxruntime-gpu`"
_CUDA_TROUBLE = "check `nvidia-smi` and that CUDA and cuDNN fit onnxruntime-gpu, or use --providers cpu"


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        name: what ONNX Runtime calls it.
        build: what to do where this ONNX Runtime was built without it.
        trouble: what to do where it does not start.
        device: where it keeps its tensors, as ONNX Runtime calls the place.
        nvidia: whether it runs on NVIDIA's GPUs and so needs the libraries of CUDA, loaded before.
        records: the option under which it records a run once and replays it.
        memory_patterns: whether memory patterns work; ONNX Runtime would switch them off with a warning.
    """

    name: str
    build: str = "reinstall onnxruntime"
    trouble: str = "check its driver and libraries, or use --providers cpu"
    device: str = "cpu"
    nvidia: bool = False
    records: str | None = None
    memory_patterns: bool = True


PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider"),
    "cuda": Provider(
        "CUDAExecutionProvider", _GPU_BUILD, _CUDA_TROUBLE, device="cuda", nvidia=True, records="enable_cuda_graph"
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        _GPU_BUILD,
        _CUDA_TROUBLE,
        device="cuda",
        nvidia=True,
        records="trt_cuda_graph_enable",
    ),
    "openvino": Provider("OpenVINOExecutionProvider", "install onnxruntime-openvino instead of onnxruntime"),
    "coreml": Provider("CoreMLExecutionProvider", "install onnxruntime on macOS"),
    "directml": Provider(
        "DmlExecutionProvider",
        "install onnxruntime-directml instead of onnxruntime (Windows only)",
        device="dml",
        memory_patterns=False,
    ),
}
CPU = PROVIDERS["cpu"].name
RECORDED = frozenset(p.records for p in PROVIDERS.values() if p.records)
"""Options under which a run is recorded once and replayed: every address must then stay what it was."""
_ALIASES = {provider.name: alias for alias, provider in PROVIDERS.items()}


def provider_name(alias: str) -> str:
    """ORT's name of a provider: `cuda` gives `CUDAExecutionProvider`.

    Raises:
        UsageError: there is no such provider.
    """
    return alias if alias in _ALIASES else provider_of(alias).name


def provider_of(name: str) -> Provider:
    """What is known of a provider, by its short name or by ORT's.

    Raises:
        UsageError: there is no such provider.
    """
    alias = _ALIASES.get(name, name.lower())
    if alias not in PROVIDERS:
        raise unknown("provider", name, PROVIDERS)
    return PROVIDERS[alias]


def short_name(name: str) -> str:
    """The short name of a provider; ORT's where we have none."""
    return _ALIASES.get(name, name)


def device_of(name: str) -> str:
    """Where a provider keeps its tensors, one that we do not know on the CPU."""
    return PROVIDERS[_ALIASES[name]].device if name in _ALIASES else "cpu"


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
    options_by_provider(options, [provider_name(alias) for alias in providers])


def options_by_provider(
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
        if name == CPU:  # ORT takes anything here, and ignores it
            raise UsageError(one_line(f"the cpu has no provider options; drop {next(iter(options))!r}"))
        found[name] = {key: str(int(v) if isinstance(v, bool) else v) for key, v in options.items()}
    return found


def spread_in_words(assignment: Mapping[str, int]) -> str:
    """`cuda 45, cpu 2`: how many nodes each provider runs."""
    return ", ".join(f"{short_name(p)} {n}" for p, n in sorted(assignment.items(), key=lambda x: (-x[1], x[0])))
