"""Options of commands, read without importing the libraries that the commands compute with.

PyTorch takes seconds to import, and every configuration stands beside a function that needs it. Here a
configuration is defined from its own statements and from those that it uses, and from no others.
"""

import ast
import contextlib
import functools
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def configuration(module: str, name: str) -> Iterator[Any]:
    """Define the class ``name`` of a module of kinema for the time of a ``with`` block. Where the module is
    imported already, the class is that of the module."""
    made: dict[str, types.ModuleType] = {}
    try:
        yield _define(module, name, made, set())
    finally:
        for key, value in made.items():
            if sys.modules.get(key) is value:
                del sys.modules[key]


def _define(module: str, name: str, made: dict[str, types.ModuleType], begun: set[tuple[str, str]]) -> Any:
    """Compute the value of a name at the top of a module from the statements that it needs. ``begun`` holds
    the names that are being defined: functions may need each other."""
    if module in sys.modules and module not in made:
        return getattr(sys.modules[module], name)
    path, statements = _statements(module)
    if name not in statements:
        # A module, which functions may use later on but no configuration needs.
        return types.ModuleType(f"{module}.{name}")
    if module not in made:
        # Documentation of fields is looked up through the module of a class.
        made[module] = sys.modules[module] = types.ModuleType(module)
        made[module].__file__ = path
    space, statement = made[module].__dict__, statements[name]
    if name in space or (module, name) in begun:
        return space.get(name)
    begun.add((module, name))
    if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("kinema"):
        source = {alias.asname or alias.name: alias.name for alias in statement.names}[name]
        space[name] = _define(str(statement.module), source, made, begun)
        return space[name]
    used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    for other in sorted(used & set(statements) - {name}):
        _define(module, other, made, begun)
    exec(compile(ast.Module([statement], []), path, "exec"), space)
    return space[name]


@functools.cache
def _statements(module: str) -> tuple[str, Mapping[str, ast.stmt]]:
    """Find the source of a module: its path, and the statement that binds each name at its top."""
    # Parents of a module are not imported for it, as find_spec of the module itself would do.
    parts = module.split(".")[1:]
    path = Path(__file__).parent.joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: dict[str, ast.stmt] = {}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        # Types of functions would bring in much that no configuration needs.
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [(alias.asname or alias.name).partition(".")[0] for alias in statement.names]
        elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names = [statement.name]
        else:
            targets = getattr(statement, "targets", [getattr(statement, "target", statement)])
            names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
            names = names if isinstance(statement, ast.Assign | ast.AnnAssign) else []
        found |= dict.fromkeys(names, statement)
    return str(path), found


def option_names(help_text: str) -> list[str]:
    """List the options in the help of a command without boxes, such as ``--num-denoising-steps``."""
    heads = re.findall(r"(?m)^ {2}((?:-{1,2}[\w.-]+(?:, | |$))+)", help_text)
    return [option for head in heads for option in re.findall(r"--[\w.-]+", head)]


def completion_script(shell: str, options: Mapping[str, Sequence[str]]) -> str:
    """Write a script for ``bash``, ``zsh`` or ``fish`` that completes commands and their options."""
    words = {name.split()[0]: "" for name in options}
    for name in options:
        first, _, second = name.partition(" ")
        words[first] = f"{words[first]} {second}".strip()
    if shell == "fish":
        lines = [
            "complete -c kinema -e",
            f"complete -c kinema -n __fish_use_subcommand -xa '{' '.join(words)}'",
        ]
        for first, seconds in words.items():
            if seconds:
                condition = (
                    f"__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {seconds}"
                )
                lines.append(f"complete -c kinema -n '{condition}' -xa '{seconds}'")
        for name, its in options.items():
            condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
            lines += [f"complete -c kinema -n '{condition}' -l {option.removeprefix('--')}" for option in its]
        return "\n".join(lines)
    cases = [f'    "{name}") words="{" ".join(its)}" ;;' for name, its in options.items()]
    groups = [f'    "{first}") words="{seconds}" ;;' for first, seconds in words.items() if seconds]
    return "\n".join(
        [
            *(["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []),
            "_kinema() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" words=""',
            '  case "${COMP_WORDS[1]} ${COMP_WORDS[2]}" in',
            *(case for case in cases if " " in case.split('"')[1]),
            '  *) case "${COMP_WORDS[1]}" in',
            *(case for case in cases if " " not in case.split('"')[1]),
            *groups,
            "  esac ;;",
            "  esac",
            f'  [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(words)}"',
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            '  [ "${#COMPREPLY[@]}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))',
            "}",
            "complete -o filenames -F _kinema kinema",
        ]
    )


def at_least(config: Any, **least: float) -> None:
    """Check fields of a configuration against the least value of each.

    Raises:
        ValueError: a field is less; the message names it with both values.
    """
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"{name} is {getattr(config, name)}, but must be at least {value}")
