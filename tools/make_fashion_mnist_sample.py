"""Make `benchmarks/data/calib.npz` and `test.npz`: a small sample of Fashion-MNIST to calibrate and score on.

    python tools/make_fashion_mnist_sample.py [FOLDER WITH THE FOUR .gz FILES] [-o benchmarks/data]

`calib.npz` holds `x`: 512 unlabelled images out of the first 55,000 training images (the ones the nets in
`benchmarks/models` were trained on). `test.npz` holds `x` and `labels`: 1,000 of the 10,000 test images.
Images are stored as the nets read them, `(pixel / 255 - 0.286) / 0.353` in float32 (N, 1, 28, 28), so that
`--calib benchmarks/data/calib.npz` works as it is. Same input and same zlib: same bytes.
"""

import argparse
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
TRAINING = 55_000  # the last 5,000 training images are the validation set


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of bytes; big-endian sizes follow the magic number."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", count=rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def as_input(images: np.ndarray) -> np.ndarray:
    """Images (n, 28, 28) of bytes as the nets read them: (n, 1, 28, 28) float32."""
    return ((images[:, None] / np.float32(255) - np.float32(0.286)) / np.float32(0.353)).astype(np.float32)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """`np.savez_compressed` without the clock: it would put the time of day into every member."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/data"))
    parser.add_argument("--calib", type=int, default=512, metavar="N")
    parser.add_argument("--test", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    train = read_idx(args.source / "train-images-idx3-ubyte.gz")
    test = read_idx(args.source / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(args.source / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
    calib_rows = rng.choice(TRAINING, args.calib, replace=False)
    test_rows = rng.choice(len(test), args.test, replace=False)

    args.output.mkdir(parents=True, exist_ok=True)
    write_npz(args.output / "calib.npz", {"x": as_input(train[calib_rows])})
    write_npz(args.output / "test.npz", {"x": as_input(test[test_rows]), "labels": labels[test_rows]})


if __name__ == "__main__":
    main()
