"""The few LAPACK and BLAS functions that take minutes, without the interpreter's lock.

SciPy's Python wrappers of the same functions hold it, so that two threads would take turns. SciPy hands out their
addresses to Cython users (`scipy.linalg.cython_lapack`); `ctypes` releases the lock while it calls them.
Matrices are float64 in Fortran order, changed in place; "lower" triangles throughout, the other one is not touched.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_double, c_int, c_void_p
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

from onnxprune.parallel import go_on

Array = NDArray[np.float64]


def potrf(A: Array) -> bool:
    """A = LLᵀ; L is written over A. False where A is not positive definite."""
    n, info = len(_square(A)), c_int()
    _call("dpotrf", b"L", n, A, max(1, n), info)
    return info.value == 0


def potri(L: Array) -> None:
    """(LLᵀ)⁻¹ over L."""
    n, info = len(_square(L)), c_int()
    _call("dpotri", b"L", n, L, max(1, n), info)
    if info.value:
        raise ValueError("the factor has a zero on its diagonal")


def potrs(L: Array, B: Array) -> None:
    """(LLᵀ)⁻¹B over B (n, k)."""
    n, info = len(_square(L)), c_int()
    _call("dpotrs", b"L", n, _rows(B, n).shape[1], L, max(1, n), B, max(1, n), info)


def trsm(L: Array, B: Array) -> None:
    """L⁻¹B over B (n, k)."""
    n = len(_square(L))
    _call("dtrsm", b"L", b"L", b"N", b"N", n, _rows(B, n).shape[1], 1.0, L, max(1, n), B, max(1, n))


def syrk(A: Array, C: Array) -> None:
    """C - AᵀA over C (m, m), for A (n, m)."""
    n, m = _fortran(A).shape
    _call("dsyrk", b"L", b"T", m, n, -1.0, A, max(1, n), 1.0, _rows(_square(C), m), max(1, m))


def mirror(A: Array) -> None:
    """Write the lower triangle over the upper one."""
    n, step = len(_square(A)), 256
    for at in range(0, n, step):
        stop = min(at + step, n)
        block = A[at:stop, at:stop]
        low = np.tril(block, -1)
        block[...] = low + low.T + np.diag(np.diag(block))
        A[at:stop, stop:] = A[stop:, at:stop].T


def _fortran(A: Array) -> Array:
    if A.dtype != np.float64 or A.ndim != 2 or not A.flags.f_contiguous or not A.flags.writeable:
        raise TypeError(f"no float64 matrix in Fortran order to write to: {A.dtype} {A.shape}, strides {A.strides}")
    return A


def _square(A: Array) -> Array:
    return _rows(A, A.shape[-1])


def _rows(A: Array, count: int) -> Array:
    if len(_fortran(A)) != count:
        raise ValueError(f"a matrix of {count} rows is wanted, not {A.shape}")
    return A


def _call(name: str, *given: Any) -> None:
    go_on()
    _function(name, len(given))(*map(_address, given))


def _address(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, bytes):
        return byref(c_char(value))
    return byref(c_double(value) if isinstance(value, float) else c_int(value) if isinstance(value, int) else value)


@cache
def _function(name: str, count: int) -> Any:
    """The function of that name, as C calls it: every argument by its address."""
    module = cython_lapack if name.startswith("dpo") else cython_blas
    capsule, api = module.__pyx_capi__[name], ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[c_void_p] * count)(address)
