"""Imports go downward only: the floors of the house."""

import ast
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parent
FLOORS = {
    "errors": 0, "numerics": 0, "parallel": 0, "lowrank": 0, "plan": 0, "graph": 0, "channels": 1, "measure": 2, "decide": 3, "rewrite": 3,
    "train": 3, "report": 3, "lossless": 3.5, "blocks": 3.5, "surgery": 3.6, "subject": 3.6,
    "stitched": 3.65, "opening": 3.65, "planning": 3.7, "repairs": 3.8, "targets": 3.7, "metric": 3.7, "api": 4, "training": 4.5, "inspection": 5, "planned": 5, "sensitivities": 5, "commands": 5.5,
    "cli": 6, "__main__": 7, "__init__": 7,
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
