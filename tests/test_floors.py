"""Imports go downward only: the floors of the house."""

import ast
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parent
FLOORS = {
    "errors": 0, "parallel": 0, "plan": 1, "numerics": 1, "files": 2, "runtime": 3, "graph": 4, "samples": 4,
    "channels": 5, "timing": 5, "measure": 6, "decide": 7, "rewrite": 7, "train": 7, "report": 7, "pipeline": 8,
    "api": 9, "commands": 10, "cli": 11, "__main__": 12, "__init__": 12,
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import hides its room"
            found |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    here = room(path)
    assert here in FLOORS, f"{here} is a new room: give it a floor"
    for name in imports(path):
        if name.split(".")[0] == "torch":
            assert here == "train"
        if name.startswith("onnxprune.") and len(name.split(".")) > 1:
            there = name.split(".")[1]
            if there in FLOORS and there != here:
                lower = FLOORS[there] < FLOORS[here] or (FLOORS[there] == FLOORS[here] == 0)
                assert lower, f"{here} imports {name}"
