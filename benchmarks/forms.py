"""The same model as a file, as bytes, and as other libraries hold it: the same cuts, and the same bytes back.

    python benchmarks/forms.py FILE.onnx ... [--fill hydrate.py]

`--fill` as in zoo_times.py. Bytes are compared once both have been through the library's own writer. Exit code 1 where
anything differs. Needs onnx-graphsurgeon and onnx-ir.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import common
import onnx

import onnxprune
from onnxprune.errors import PruneError
from onnxprune.files.forms import FORMS, Form
from onnxprune.samples.user_code import load_function


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--fill", type=Path, metavar="FILE.py")
    args = parser.parse_args()
    begin, rows, wrong = time.perf_counter(), [], 0
    fill = load_function(f"{args.fill}:hydrate")[0] if args.fill else None
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        for path in args.files:
            source = Path(folder, "model.onnx") if fill else path
            if fill:
                fill(str(path), str(source))
            told = compared(source)
            wrong += any(words not in ("same", "declined") for words in told)
            rows.append((path.name, *told))
            common.say(" ".join(rows[-1]))
    print(common.table(("file", "bytes", *FORMS), rows))
    print(f"\n{len(rows)} files, {wrong} with a difference. {common.footer(time.perf_counter() - begin)}")
    return 1 if wrong else 0


def compared(path: Path) -> list[str]:
    """What came of every form, against the file."""
    try:
        plain = pruned(path)
    except PruneError:
        return ["declined"] * (1 + len(FORMS))
    same = pruned(path.read_bytes()).model == plain.model
    return ["same" if same else "other bytes", *(through(form, name, path, plain) for name, form in FORMS.items())]


def through(form: Form, name: str, path: Path, plain: onnxprune.Result) -> str:
    """The same for one library."""
    library = form.load()
    try:
        found = pruned(form.from_proto(library, onnx.load(path)))
    except PruneError as error:
        return str(error)[:80]
    if found.cuts != plain.cuts:
        return "other cuts"
    back = form.to_proto(library, getattr(found, f"to_{name}")())
    expected = form.to_proto(library, getattr(plain, f"to_{name}")())
    return "same" if back.SerializeToString() == expected.SerializeToString() else "other bytes"


def pruned(model: object) -> onnxprune.Result:
    """Half of it, without samples and without what tells the source."""
    return onnxprune.prune(model, 0.5, best_effort=True, repair="none", metadata=False, trusted=True)


if __name__ == "__main__":
    sys.exit(main())
