"""Models' inputs, samples for them, and files that hold those."""

import struct
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Input:
    name: str
    dtype: np.dtype
    shape: tuple


F32 = np.dtype("float32")
ONE = [Input("x", F32, ("N", 1, 4, 4))]
TWO = [Input("x", F32, ("N", 1, 4, 4)), Input("ids", np.dtype("int64"), ("N", 3))]
FIXED = [Input("x", F32, (4, 1, 4, 4))]
WIDE = [Input("x", F32, (None, 1, 4, "W"))]
SCALED = [Input("x", F32, ("N", 1, 4, 4)), Input("scale", F32, (1, 2))]
RGB = [Input("x", F32, ("N", 3, 4, 4))]
X = np.arange(6 * 16, dtype=np.float32).reshape(6, 1, 4, 4)
IDS = np.arange(18).reshape(6, 3)


def all_of(calibration, name="x", size=4):
    return np.concatenate([batch[name] for batch in calibration.batches(size)])


def npz(tmp, **arrays):
    np.savez(tmp / "c.npz", **arrays)
    return tmp / "c.npz"


def packed(tmp, **arrays):
    np.savez_compressed(tmp / "c.npz", **arrays)
    return str(tmp / "c.npz")


def header(shape, descr="<f4", fill=b""):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + fill


def saved(tmp, name, data):
    (tmp / name).write_bytes(data)
    return tmp / name


class Reader:
    """Like onnxruntime's CalibrationDataReader; gives the same buffer every time, as real ones do."""

    def __init__(self):
        self.at, self.buffer = 0, np.empty((1, 1, 4, 4), np.float32)

    def get_next(self):
        if self.at == 6:
            return None
        self.buffer[...] = X[self.at]
        self.at += 1
        return {"x": self.buffer}

    def rewind(self):
        self.at = 0
