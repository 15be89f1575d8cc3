"""The table of providers, and options as they are spelled."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnxprune.errors import UsageError
from onnxprune.runtime.providers import (
    CPU,
    PROVIDERS,
    RECORDED,
    device_of,
    parse_provider_options,
    provider_name,
    provider_of,
    short_name,
)


@pytest.mark.parametrize("text", ["use_tf32=0", "cuda.use_tf32", "cuda.=1", "cuda.use_tf32=", "abacus.beads=9"])
def test_provider_options_that_are_none(text):
    with pytest.raises(UsageError, match=r"cuda\.use_tf32=0|unknown provider"):
        parse_provider_options([text])


@pytest.mark.parametrize("alias", PROVIDERS)
def test_both_names_mean_the_same_entry(alias):
    name = provider_name(alias)
    assert provider_name(alias.upper()) == provider_name(name) == name and short_name(name) == alias
    assert provider_of(alias) is provider_of(name) is PROVIDERS[alias]
    assert device_of(name) == PROVIDERS[alias].device


def test_the_table():
    assert len({p.name for p in PROVIDERS.values()}) == len(PROVIDERS)
    assert [a for a, p in PROVIDERS.items() if p.device != "cpu"] == ["cuda", "tensorrt", "directml"]
    assert [a for a, p in PROVIDERS.items() if p.nvidia] == ["cuda", "tensorrt"]
    assert RECORDED == {"enable_cuda_graph", "trt_cuda_graph_enable"}
    assert (short_name("MadeUpProvider"), device_of("MadeUpProvider")) == ("MadeUpProvider", "cpu")
    assert CPU == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cude", "unknown provider 'cude'; did you mean cuda? choose from cpu, cuda, "),
        ("warp", "'warp'; choose from cpu"),
    ],
)
def test_a_name_that_is_none(name, says):
    with pytest.raises(UsageError) as caught:
        provider_name(name)
    assert says in str(caught.value)


def test_names_are_known_without_numpy():
    code = "import sys; import onnxprune.runtime.providers; print({'numpy', 'onnx', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
