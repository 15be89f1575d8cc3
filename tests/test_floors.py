"""Imports go downward only: the floors of the house, and no circle of files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parent
FLOORS = {
    "errors": 0, "parallel": 0, "numerics": 1, "protobuf": 1, "runtime": 2, "graph": 3, "files": 4, "samples": 4,
    "plan": 5, "elsewhere": 5, "channels": 6, "timing": 6, "measure": 7, "decide": 8, "rewrite": 8, "train": 8,
    "report": 8, "pipeline": 9, "api": 10, "commands": 11, "cli": 12, "__main__": 13, "__init__": 13,
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path, root: Path = ROOT) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that runs, those inside functions too; not those for the type checker alone."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def imported(path: Path) -> set[str]:
    """What a file imports: a.b for `import a.b`, a.b.c for `from a.b import c`."""
    found = set()
    for node in imports(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import hides its room"
            found |= {f"{node.module}.{a.name}" for a in node.names}
        else:
            found |= {a.name for a in node.names}
    return found


def file_of(name: str, root: Path) -> Path | None:
    """The file of the package in `root` that a dotted name is in."""
    package, *parts = name.split(".")
    while package == root.name:
        at = root.joinpath(*parts)
        for path in (at.with_suffix(".py"), at / "__init__.py"):
            if path.is_file():
                return path
        parts.pop()
    return None


def circles(paths: list[Path], root: Path) -> list[list[str]]:
    """Files that need one another, directly or by way of others: each is in a set with all that it meets again."""
    needs = {path: {file_of(name, root) for name in imported(path)} - {path, None} for path in paths}
    reached: dict[Path, set[Path]] = {}
    for start in needs:
        seen, todo = set(), list(needs[start])
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo += needs[at]
        reached[start] = seen
    found = {frozenset({b for b in reached[a] if a in reached[b]}) for a in needs if a in reached[a]}
    return sorted(sorted(str(p.relative_to(root)) for p in circle) for circle in found)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    here = room(path)
    assert here in FLOORS, f"{here} is a new room: give it a floor"
    for name in imported(path):
        if name.split(".")[0] == "torch":
            assert here == "train"
        if name.startswith("onnxprune.") and len(name.split(".")) > 1:
            there = name.split(".")[1]
            if there in FLOORS and there != here:
                assert FLOORS[there] < FLOORS[here], f"{here} imports {name}, which is on no lower floor"


def test_floors_are_whole():
    assert all(isinstance(floor, int) for floor in FLOORS.values())


def test_no_circle_of_files():
    assert circles(FILES, ROOT) == []


SOUND = {
    "__init__.py": "",
    "room/__init__.py": "",
    "room/a.py": "from planted.room import b\n",
    "room/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted.room.a import name\n",
    "room/c.py": "import planted.room.a\n",
}
LATE = "def late():\n    from planted.room.a import name\n"


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"room/b.py": "from planted.room import a\n"}, [["room/a.py", "room/b.py"]]),
        ({"room/b.py": LATE}, [["room/a.py", "room/b.py"]]),
        ({"room/b.py": "import planted.room.c\n"}, [["room/a.py", "room/b.py", "room/c.py"]]),
        ({"room/b.py": "def late():\n    import planted.room.a as a\n"}, [["room/a.py", "room/b.py"]]),
        (
            {"room/__init__.py": "from planted.room.c import name\n", "room/b.py": "from planted.room import name\n"},
            [["room/__init__.py", "room/a.py", "room/b.py", "room/c.py"]],
        ),
        (
            {"room/d.py": "from planted.room.e import x\n", "room/e.py": "import planted.room.d\n"},
            [["room/d.py", "room/e.py"]],
        ),
    ],
    ids=["none", "direct", "late", "of three", "late and renamed", "through a room", "apart"],
)
def test_a_planted_circle_is_found(tmp_path, changed, found):
    root = tmp_path / "planted"
    for name, text in {**SOUND, **changed}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert circles(sorted(root.rglob("*.py")), root) == found
