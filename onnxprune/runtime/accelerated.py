"""Sessions on accelerators: the provider that was asked for, or an error that says why not.

ORT misleads: `get_available_providers()` describes the build and not the machine, and a provider that cannot start is
replaced by the CPU without an error. So a session is compared with what was asked for, and the nodes each provider
took are counted.

CUDA has been run on a GPU (H200, ORT 1.31.1, CUDA 13; `tests/timing/test_cuda.py` does it again where there is one).
TensorRT and the other accelerators are tested against a stand-in for the `onnxruntime` module only.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from onnxprune.errors import ModelError, ProviderError, UsageError, one_line
from onnxprune.runtime.providers import CPU, provider_of, short_name, spread_in_words
from onnxprune.runtime.reasons import captured_stderr, reason

RECORD = ("session.record_ep_graph_assignment_info", "1")
"""The entry of a session's options that has ORT note which provider runs which node."""


@dataclass(frozen=True)
class Placed:
    """A node as ORT runs it, fused or rewritten as the case may be, and the provider that runs it."""

    node: str
    op_type: str
    provider: str


def placed(raw: Any) -> tuple[Placed, ...] | None:
    """Every node and its provider, where this ORT records it."""
    try:
        parts = raw.get_provider_graph_assignment_info()
        return tuple(Placed(n.name, n.op_type, part.ep_name) for part in parts for n in part.get_nodes()) or None
    except Exception:  # an ORT without the method, or one that recorded nothing
        return None


def check_build(ort: ModuleType, wanted: Sequence[str]) -> None:
    """ProviderError where a provider, by ORT's name, is not in this build."""
    available = ort.get_available_providers()
    for name in wanted:
        if name not in available:
            have = ", ".join(map(short_name, available))
            raise ProviderError(
                f"provider {short_name(name)} is not in onnxruntime {ort.__version__} (which has {have}); "
                f"{provider_of(name).build}"
            )


def start(
    ort: ModuleType,
    source: bytes | str,
    options: Callable[[], Any],
    wanted: Sequence[str],
    tuned: Mapping[str, Mapping[str, str]],
    name: str,
) -> tuple[Any, tuple[Placed, ...] | None]:
    """A session whose first provider really is the one asked for, and who took which nodes.

    Args:
        ort: the `onnxruntime` module.
        source: the model, serialised, or its path.
        options: makes the options of a session.
        wanted: ORT's names of the providers.
        tuned: provider -> its options.
        name: what messages call the model.

    Raises:
        ProviderError: the first provider did not start, or took no node.
        ModelError: ORT does not load the model, on the CPU neither.
        UsageError: the provider does not know an option.
    """
    first, alias, remedy = wanted[0], short_name(wanted[0]), provider_of(wanted[0]).trouble
    listed = [(p, dict(tuned[p])) if p in tuned else p for p in dict.fromkeys([*wanted, CPU])]
    with captured_stderr() as said:
        if any(provider_of(p).nvidia for p in wanted):
            _preload(ort)
        with _refusals(ort, source, options, name, alias, bool(tuned)):
            # enable_fallback=0: otherwise ORT prints a banner and tries again on the CPU
            raw = ort.InferenceSession(source, _recording(options()), providers=listed, enable_fallback=0)
    got = list(raw.get_providers())
    if not got or got[0] != first:
        fallen = short_name(got[0]) if got else "nothing"
        why = f" ({reason(said[0])})" if said and said[0] else ""
        raise ProviderError(
            one_line(f"{name}: asked for {alias}, but ONNX Runtime fell back to {fallen}{why}; {remedy}")
        )
    nodes = placed(raw)
    if nodes is not None and not any(n.provider == first for n in nodes):
        spread = spread_in_words(Counter(n.provider for n in nodes))
        raise ProviderError(
            one_line(f"{name}: provider {alias} took no node (nodes by provider: {spread}); use --providers cpu")
        )
    return raw, nodes


def _recording(options: Any) -> Any:
    """The options, with the nodes' providers recorded."""
    with contextlib.suppress(Exception):  # an ORT too old to record it: then only the providers are compared
        options.add_session_config_entry(*RECORD)
    return options


def _preload(ort: ModuleType) -> None:
    """Load the libraries of CUDA that pip has installed."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        # A missing library shows later, with ORT's own reason; here ORT would print it to standard output.
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            preload()


@contextlib.contextmanager
def _refusals(
    ort: ModuleType, source: bytes | str, options: Callable[[], Any], name: str, alias: str, tuned: bool
) -> Iterator[None]:
    """ORT's refusal in our words: is it the model, an option or the provider?"""
    try:
        yield
    except Exception as error:
        try:
            ort.InferenceSession(source, options(), providers=[CPU])
        except Exception as fault:
            raise ModelError(one_line(f"{name}: does not load in ONNX Runtime: {reason(fault)}")) from fault
        if tuned and "provider option" in str(error).lower():
            raise UsageError(one_line(f"{name}: {alias} refuses an option: {reason(error)}")) from error
        raise ProviderError(
            one_line(f"{name}: provider {alias} does not start: {reason(error)}; {provider_of(alias).trouble}")
        ) from error
