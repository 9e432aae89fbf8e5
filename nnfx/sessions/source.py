"""The source of functions, independent of Python version, comments and formatting, and the names used in it."""

import ast
import dis
import functools
import hashlib
import inspect
import linecache
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

_LEFT_OUT = {"annotation", "ctx", "decorator_list", "kind", "name", "returns", "type_comment", "type_params"}
"""Fields of the syntax tree that do not affect what a function computes, or are described elsewhere."""


class Used(NamedTuple):
    """A global or captured name that a function uses, with the attributes accessed on it, as in `np.linalg.norm`."""

    name: str
    attributes: tuple[str, ...]


def text_of(function: FunctionType) -> str | None:
    """Return the normalised source of a function; None if the source is not available.

    >>> text_of(eval("lambda x: x")) is None  # not read from a file
    True
    """
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    node = _node_of(code, "".join(lines)) if lines else None
    if node is None:
        return None
    body = [node.body] if isinstance(node, ast.Lambda) else node.body
    # default values of parameters are described elsewhere
    arguments = [
        [each.arg for each in group] for group in (node.args.posonlyargs, node.args.args, node.args.kwonlyargs)
    ]
    stars = [each and each.arg for each in (node.args.vararg, node.args.kwarg)]
    return f"{arguments}{stars}{''.join(map(_text, _without_docstring(body)))}"


def constants_of(code: CodeType) -> str:
    """Return the constants and names in a function without source; they do not depend on the release of Python."""
    inner = sorted(constants_of(each) for each in code.co_consts if isinstance(each, CodeType))
    values = sorted({repr(each) for each in code.co_consts if isinstance(each, int | float | complex | str | bytes)})
    return f"{code.co_varnames[: code.co_argcount]}{sorted(code.co_names)}{values}{inner}"


def bytecode_of(code: CodeType) -> str:
    """Return a function's bytecode, which is the same only within one release of Python."""
    inner = [bytecode_of(each) for each in code.co_consts if isinstance(each, CodeType)]
    return f"{code.co_code.hex()}{inner}"


def used_in(code: CodeType) -> Iterator[Used]:
    """List the global and captured names that a function uses, including those of nested functions."""
    name, attributes = "", list[str]()
    for instruction in dis.get_instructions(code):
        if name and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.append(str(instruction.argval))
            continue
        if name:
            yield Used(name, tuple(attributes))
        name, attributes = "", []
        if instruction.opname.startswith(
            ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT")
        ):
            name = str(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from used_in(inner)


def checksum(text: str) -> str:
    """Return a short checksum of a string.

    >>> checksum("")
    'e3b0c44298fc'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=64)
def _functions_in(text: str) -> list[Any]:
    """Return the syntax trees of all functions defined in a file."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def _node_of(code: CodeType, text: str) -> Any:
    """Find a function in its file: the innermost function that starts on its first line and contains its code."""
    found = []
    for node in _functions_in(text):
        decorators = getattr(node, "decorator_list", [])
        is_named = code.co_name == getattr(node, "name", "<lambda>")
        if is_named and min([node.lineno, *(each.lineno for each in decorators)]) == code.co_firstlineno:
            found.append(node)
    if len(found) > 1:
        places = [
            (place.lineno, place.col_offset)
            for instruction in dis.get_instructions(code)
            if (place := instruction.positions) is not None
            and place.lineno is not None
            and place.col_offset is not None
            and place.end_col_offset  # None or zero if the instruction has no position of its own
        ]
        around = [node for node in found if all(_begin(node) <= place < _end(node) for place in places)]
        found = [max(around, key=_begin)] if around and places else []
    if len(found) != 1:
        return None
    arguments = inspect.getargs(code)
    given = found[0].args
    names = [each.arg for each in (*given.posonlyargs, *given.args)]
    # if the file has changed since the import, another function may be in that place
    return found[0] if arguments.args[: len(names)] == names else None


def _begin(node: Any) -> tuple[int, int]:
    body = node.body if isinstance(node, ast.Lambda) else node.body[0]
    return body.lineno, body.col_offset


def _end(node: Any) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset


def _without_docstring(body: list[Any]) -> list[Any]:
    first = body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if is_docstring and isinstance(first.value.value, str) else body


def _text(node: Any) -> str:
    """Return a syntax tree as text, without positions and other details that differ between releases of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, []) and name not in _LEFT_OUT}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        fields["body"] = _without_docstring(node.body) or [ast.Pass()]
        fields |= {"name": node.name, "decorator_list": node.decorator_list}
    elif isinstance(node, ast.alias | ast.ExceptHandler):
        fields["name"] = node.name
    elif isinstance(node, ast.Constant) and node.value is None:
        fields["value"] = None
    return f"{type(node).__name__}({','.join(f'{name}={_text(value)}' for name, value in fields.items())})"
