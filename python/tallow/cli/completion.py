"""``tallow completion``: a script of a shell's own, so that Tab needs no Python.

argcomplete would start an interpreter at each Tab, and knows nothing of words and options in any order. zsh
runs bash's script, by its own bashcompinit.
"""

from __future__ import annotations

import argparse

from ..wheels import ALIASES
from . import commands
from .usage import UsageError, prog

_BASH = """# Completion of the tallow command; tallow completion bash made it.
_tallow() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" options="" values=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{options}
    esac
    case "${{COMP_WORDS[1]}}" in
        completion) values="bash zsh fish" ;;
        {with_model}) [ "$COMP_CWORD" -eq 2 ] && values="{models}" ;;
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
        *) COMPREPLY=($(compgen -W "$values" -- "$word")) ;;
    esac
}}
complete -o default -F _tallow tallow
"""


def script(options: argparse.Namespace) -> None:
    if options.shell not in ("bash", "zsh", "fish"):
        raise UsageError(f"completion: {options.shell!r} is none of bash, zsh, fish")
    if options.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_fish() if options.shell == "fish" else _bash(), end="")


def _bash() -> str:
    cases = (
        f'        {command.name}) options="{" ".join(_long(command))}" ;;'
        for command in commands.COMMANDS.values()
    )
    return _BASH.format(
        commands=" ".join(commands.COMMANDS),
        options="\n".join(cases),
        with_model="|".join(_with_model()),
        models=" ".join(ALIASES),
    )


def _fish() -> str:
    lines = [
        "# Completion of the tallow command; tallow completion fish made it.",
        "complete -c tallow -f -n __fish_use_subcommand",
    ]
    for command in commands.COMMANDS.values():
        lines.append(
            f"complete -c tallow -n __fish_use_subcommand -a {command.name} -d {_quoted(command.summary)}"
        )
        seen = f"'__fish_seen_subcommand_from {command.name}'"
        for action in command.parser(prog())._actions:
            for option in action.option_strings:
                kind = "-l" if option.startswith("--") else "-s"
                value = "" if action.nargs == 0 else " -r"
                text = _quoted(str(action.help).replace("%%", "%"))
                lines.append(f"complete -c tallow -n {seen} {kind} {option.lstrip('-')}{value} -d {text}")
    models = f"'__fish_seen_subcommand_from {' '.join(_with_model())}'"
    lines.append(f"complete -c tallow -n {models} -a {_quoted(' '.join(ALIASES))}")
    return "\n".join(lines) + "\n"


def _long(command: commands.Command) -> list[str]:
    found = command.parser(prog())._option_string_actions
    return [option for option in found if option.startswith("--")]


def _with_model() -> list[str]:
    return [
        name
        for name, command in commands.COMMANDS.items()
        if any(word.name == "model" for word in command.words)
    ]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
