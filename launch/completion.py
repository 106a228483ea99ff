"""Completion of commands, presets and flags in bash and zsh, as a script that a shell reads."""

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Sequence

from configs.presets.table import PRESETS

_FLAG = re.compile(r"^  (--\S+?),?(?: |$)", re.MULTILINE)

_SCRIPT = """\
_tessera() {{
    local found
    case "$COMP_CWORD ${{COMP_WORDS[1]}}" in
        "1 "*) found="{commands}" ;;
        "2 train" | "2 chaos") found="{presets}" ;;
{cases}
    esac
    COMPREPLY=($(compgen -W "$found" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _tessera ./tessera tessera"""


def completion_script(commands: Iterable[str], find: Callable[[str], Callable]) -> str:
    """Returns a script for bash, and for zsh with bashcompinit.

    Args:
        find: the function of a command, by its name; its help gives the flags.
    """
    first = {"train": [next(iter(PRESETS))]}
    cases = [
        f'        *" {name}") found="{" ".join(_flags(find(name), first.get(name, ())))}" ;;'
        for name in commands
    ]
    return _SCRIPT.format(
        commands=" ".join(commands), presets=" ".join(PRESETS), cases="\n".join(cases)
    )


def _flags(command: Callable, first: Sequence[str]) -> list[str]:
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        command([*first, "--help-all"])
    return [*_FLAG.findall(page.getvalue()), "--help", "--help-all"]
