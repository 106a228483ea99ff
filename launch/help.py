"""The help of a command: its settings, their values and their docstrings, in 80 columns."""

import ast
import dataclasses
import functools
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import tyro

from configs.require import metadata_of

_ARG: Any = type(tyro.conf.arg())
HELP = ("--help", "-h", "--help-all")

_MAX_VALUE = 14
"""Characters of a value in a table, which longer ones leave."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of a dataclass of settings, beside the name that a person gives it."""

    name: str
    """Such as model.num_layers."""
    type: Any
    value: Any
    """What it is unless it is given; MISSING where it must be given."""
    doc: str
    metavar: str | None = None
    """The name of a positional argument; None for a flag."""

    @property
    def group(self) -> str:
        """Such as model; "" for an argument of the command itself."""
        return self.name.partition(".")[0] if "." in self.name else ""

    @property
    def label(self) -> str:
        return self.metavar or f"--{self.name.replace('_', '-')}"

    @property
    def negative(self) -> str:
        group, dot, field = self.label.removeprefix("--").rpartition(".")
        return f"--{group}{dot}no-{field}"


def settings_of(kind: Any, default: Any = None, group: str = "") -> Iterator[Setting]:
    """Yields the settings of a dataclass and of the dataclasses in its fields, in their order.

    Args:
        default: an instance that has their values; None takes the defaults of the fields.
        group: stands before their names.
    """
    docs, hints = _docs(kind), metadata_of(kind)
    for field in dataclasses.fields(kind):
        hint, metadata = hints[field.name]
        metavar, given_name = None, field.name
        for extra in metadata:
            if type(extra) is _ARG:
                metavar = extra.metavar
                given_name = field.name if extra.name is None else extra.name
        name = ".".join(part for part in (group, given_name) if part)
        value = _value(field, default)
        if dataclasses.is_dataclass(hint):
            yield from settings_of(hint, None if value is MISSING else value, name)
        else:
            doc = docs.get(field.name, "")
            yield Setting(name=name, type=hint, value=value, doc=doc, metavar=metavar)


def _value(field: dataclasses.Field, default: Any) -> Any:
    if default is not None:
        return getattr(default, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


@functools.cache
def _docs(kind: type) -> dict[str, str]:
    """Returns the docstring below each field, which Python itself does not keep."""
    docs = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(node, ast.ClassDef)
        for field, below in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        docs[field.target.id] = " ".join(text.split())
    return docs


def help_page(
    kind: type,
    default: Any,
    *,
    command: str,
    description: str | None = None,
    names: Sequence[str] | None = None,
    whole: bool = False,
) -> str:
    """Returns the help of a command.

    Args:
        names: the settings of a short page in their order, one line each; None is all, those in
            groups one line each.
        whole: show every setting with its docstring, whatever the names are.
    """
    settings = list(settings_of(kind, default))
    positional = [each.label for each in settings if each.metavar]
    lines = [" ".join(("usage:", command, *positional, "[--flag value ...]")), ""]
    for paragraph in (description or inspect.getdoc(kind) or "").split("\n\n"):
        lines += [*_wrapped(paragraph), ""]
    if names is None or whole:
        settings.sort(key=lambda each: bool(each.group))  # the command's own first
    else:
        settings = sorted(
            (s for s in settings if s.name in names), key=lambda s: names.index(s.name)
        )
    for group, members in itertools.groupby(settings, lambda each: each.group):
        lines += _wrapped(f"{group}: {_docs(kind).get(group, '')}") if group else []
        in_table = not whole and bool(group or names)
        lines += [*(_table if in_table else _paragraphs)(list(members)), ""]
    if not whole and any(each.group for each in settings):
        lines.append(f"every setting, described: {command} --help-all")
    return "\n".join(lines).rstrip()


def _paragraphs(settings: Sequence[Setting]) -> Iterator[str]:
    for each in settings:
        if each.metavar:
            kind = ""
        elif each.type is bool:
            kind = f", {each.negative}" if each.value else ""
        else:
            kind = f" {type_text(each.type)}"
        value = "required" if each.value is MISSING else f"default: {value_text(each.value)}"
        yield from _wrapped(f"{each.label}{kind}", "  ")
        yield from _wrapped(f"{each.doc} ({value})", "      ")


def _table(settings: Sequence[Setting]) -> Iterator[str]:
    """Yields each setting in one line, with its value and as much of its docstring as fits."""
    labels = max(len(each.label) for each in settings)
    values = max(len(value_text(each.value)) for each in settings)
    for each in settings:
        line = f"  {each.label:<{labels}}  {value_text(each.value):<{min(values, _MAX_VALUE)}}  "
        yield line + textwrap.shorten(each.doc, max(_columns() - len(line), 20), placeholder=" ...")


def type_text(kind: Any) -> str:
    """Returns the values that a setting takes, such as INT or {rms,layer}."""
    if kind is NoneType:
        return "None"
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, args))}}}"
    if get_origin(kind) is tuple:
        return f"[{type_text(args[0])} ...]"
    return "|".join(map(type_text, args)) if args else kind.__name__.upper()


def value_text(value: Any) -> str:
    """Returns a value as a person types it."""
    if isinstance(value, tuple):
        return " ".join(map(value_text, value)) or "()"
    text = str(value)
    return text if text and text.isprintable() and " " not in text else repr(text)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _columns(),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _columns() -> int:
    """Returns the width of the terminal, 80 in a pipe, and at most that of these docstrings."""
    return min(shutil.get_terminal_size().columns, 100)
