"""`onnxprune completion bash|zsh|fish`: what completes commands, options and the names they take, for a shell to read.

Made from the parsers, so that a new option is completed too. Behind anything else, files are.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnxprune.commands.common import print_out
from onnxprune.commands.help import TOPICS
from onnxprune.commands.options import Parser, add_words
from onnxprune.commands.table import COMMANDS
from onnxprune.errors import unknown
from onnxprune.pipeline.settings import KINDS, METHODS, RECIPES
from onnxprune.report.status import Status

NAMED = {"--criterion": "criteria", "--repair": "repairs", "--method": "training", "--providers": "providers"}
"""Options that take names of a topic of help."""
Options = Mapping[str, Sequence[argparse.Action]]
"""By command; that of the main job is empty."""


def parser() -> Parser:
    about = (
        "Completion of commands, options and names, for a shell to read:\n\n"
        '  bash  eval "$(onnxprune completion bash)" in ~/.bashrc\n'
        '  zsh   eval "$(onnxprune completion zsh)" in ~/.zshrc\n'
        "  fish  onnxprune completion fish > ~/.config/fish/completions/onnxprune.fish"
    )
    made = Parser("completion", "completion bash|zsh|fish", about)
    made.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")
    add_words(made.add_argument_group("general").add_argument)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    if args.shell not in SHELLS:
        raise unknown("shell", args.shell, SHELLS)
    print_out(SHELLS[args.shell](_options(), _values()))


def _options() -> Options:
    makers = {"": COMMANDS["prune"][0], **{name: make for name, (make, _) in COMMANDS.items()}}
    return {name: [a for a in make()._actions if a.option_strings] for name, make in makers.items()}


def _values() -> dict[str, list[str]]:
    """Option -> the names that it takes."""
    from onnxprune.decide.allocation import ALLOCATIONS

    found = {flag: [name for name, _ in TOPICS[topic][1]()] for flag, topic in NAMED.items()}
    return found | {"--of": [*KINDS], "--allocation": [*ALLOCATIONS], "--methods": [*METHODS, *RECIPES]}


def _flags(actions: Sequence[argparse.Action]) -> str:
    return " ".join(flag for a in actions for flag in a.option_strings)


def _bash(options: Options, values: Mapping[str, Sequence[str]]) -> str:
    named = "\n".join(f'    {flag}) COMPREPLY=($(compgen -W "{" ".join(v)}" -- "$cur")); return;;'
                      for flag, v in values.items())  # fmt: skip
    known = "\n".join(f'    {name or "*"}) options="{_flags(own)}";;' for name, own in _main_last(options))
    return f"""_onnxprune() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} options
  case $prev in
{named}
    help) COMPREPLY=($(compgen -W "{" ".join(TOPICS)}" -- "$cur")); return;;
    completion) COMPREPLY=($(compgen -W "{" ".join(SHELLS)}" -- "$cur")); return;;
  esac
  case ${{COMP_WORDS[1]}} in
{known}
  esac
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
    [[ $COMP_CWORD == 1 ]] && COMPREPLY+=($(compgen -W "{" ".join(COMMANDS)}" -- "$cur"))
  fi
}}
complete -o filenames -F _onnxprune onnxprune
"""


def _zsh(options: Options, values: Mapping[str, Sequence[str]]) -> str:
    known = "\n".join(f"    {name or '*'}) _arguments -S {' '.join(_zsh_options(own, values))} '*:file:_files';;"
                      for name, own in _main_last(options))  # fmt: skip
    return f"""#compdef onnxprune
_onnxprune() {{
  if (( CURRENT == 2 )) && [[ $PREFIX != -* ]]; then
    compadd {" ".join(COMMANDS)}
    _files
    return
  fi
  case $words[2] in
    help) compadd {" ".join(TOPICS)};;
    completion) compadd {" ".join(SHELLS)};;
{known}
  esac
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}
compdef _onnxprune onnxprune
"""


def _zsh_options(actions: Sequence[argparse.Action], values: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for a in actions:
        for flag in a.option_strings:
            takes = f"({' '.join(values[flag])})" if flag in values else "_files"
            many = "*" if isinstance(a, argparse._AppendAction) else ""
            yield f"'{many}{flag}[{_said(a)}]" + ("'" if a.nargs == 0 else f":{a.metavar or a.dest}:{takes}'")


def _fish(options: Options, values: Mapping[str, Sequence[str]]) -> str:
    commands = " ".join(name for name in options if name)
    lines = [f"complete -c onnxprune -n __fish_use_subcommand -a '{commands}'"]
    lines += [f"complete -c onnxprune -f -n '__fish_seen_subcommand_from help' -a '{' '.join(TOPICS)}'"]
    lines += [f"complete -c onnxprune -f -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'"]
    for name, own in options.items():
        where = f"__fish_seen_subcommand_from {name}" if name else f"not __fish_seen_subcommand_from {commands}"
        for a in own:
            flags = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in a.option_strings)
            named = next((v for f, v in values.items() if f in a.option_strings), None)
            takes = "" if a.nargs == 0 else f" -x -a '{' '.join(named)}'" if named else " -r"
            lines.append(f"complete -c onnxprune -n '{where}' {flags}{takes} -d '{_said(a)}'")
    return "\n".join(lines) + "\n"


def _main_last(options: Options) -> list[tuple[str, Sequence[argparse.Action]]]:
    """The main job behind the commands: its pattern takes every word."""
    return sorted(options.items(), key=lambda item: item[0] == "")


def _said(action: argparse.Action) -> str:
    """The line of help, in words that no shell reads anything into."""
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    return re.sub(r"[^\w ,.;()=/%-]", "", text.replace("%%", "%"))[:80]


SHELLS: Mapping[str, Callable[[Options, Mapping[str, Sequence[str]]], str]] = {
    "bash": _bash, "zsh": _zsh, "fish": _fish,
}  # fmt: skip
