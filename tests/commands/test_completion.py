"""Completion: what a shell offers behind the words that were typed."""

import shutil
import subprocess

import pytest

from onnxprune.cli import COMMANDS, main
from onnxprune.commands.completion import SHELLS
from onnxprune.commands.table import flags_of


def script(capsys, shell):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def offered(text, folder, *words):
    """What bash offers for the last word."""
    line = " ".join(f"'{w}'" for w in ("onnxprune", *words))
    ask = f'\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _onnxprune; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", text + ask], cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "among"),
    [
        (["ins"], ["inspect"]),
        (["mod"], ["model.onnx"]),
        (["model.onnx", "--min-w"], ["--min-width"]),
        (["model.onnx", "--repair", "re"], ["refit"]),
        (["plan", "model.onnx", "--criterion", "el"], ["elimination"]),
        (["bench", "--cs"], ["--csv"]),
        (["bench", "--rat"], []),
        (["inspect", "mod"], ["model.onnx"]),
        (["help", "crit"], ["criteria"]),
        (["completion", "z"], ["zsh"]),
    ],
    ids=" ".join,
)
def test_bash_completes(capsys, tmp_path, words, among):
    (tmp_path / "model.onnx").touch()
    assert offered(script(capsys, "bash"), tmp_path, *words) == among


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_there_and_the_shell_reads_it(capsys, shell):
    text = script(capsys, shell)
    for name, (make, _) in COMMANDS.items():
        assert name in text
        for flag in flags_of(make()):
            assert (flag.replace("--", "-l ") if shell == "fish" else flag) in text, flag
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)
