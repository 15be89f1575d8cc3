"""What was probably meant by a word that no command understands: a command, an option, or one of another command."""

from __future__ import annotations

import argparse
import os
import re

from onnxprune.commands.table import COMMANDS, flags_of
from onnxprune.errors import nearest

DASHES = "‐‑‒–—−"
"""What word processors make of a hyphen."""


def dashed(word: str) -> str:
    """The option that a word spells, with hyphens for whatever dash it begins with; empty where it spells none."""
    if re.match(rf"[{DASHES}]+[^\W\d]", word):
        return "--" + word.lstrip(DASHES + "-")
    return word if re.match(r"--?[^\W\d]", word) else ""


def meant_by(word: str, parser: argparse.ArgumentParser) -> str:
    """What to say of a word that a parser does not know; empty where nothing comes to mind."""
    own = parser._option_string_actions
    option = word if word.startswith("-") else f"--{word}"
    option = "--" + option.lstrip("-").replace("_", "-").lower() if len(option.strip("-")) > 1 else option
    if option.partition("=")[0] in own:
        return f"did you mean {option}?"
    if word in COMMANDS and not os.path.exists(word):
        return f"a command comes first: `onnxprune {word} ...`"
    elsewhere = [name for name, (make, _) in COMMANDS.items() if option in flags_of(make())]
    if elsewhere:
        page = "; here `onnxprune report` makes a page of what --json prints"
        return f"{option} is an option of {', '.join(elsewhere)}" + page * (option == "--report" and "--json" in own)
    if "--calib" in own and os.path.exists(word):
        return f"samples are given as --calib {word}"
    near = nearest(option, own) if word.startswith("-") else ""
    return f"did you mean {near}?" if near else ""


def meant_command(word: str) -> str:
    """The command that was probably meant by a word that is no file; empty where none is near."""
    if not re.fullmatch(r"[^\W\d][\w-]*", word) or os.path.exists(word):
        return ""
    return nearest(word.replace("_", "-"), COMMANDS)
