"""The exports of `nnfx`, with signatures, change only on purpose: run this file to rewrite the list."""

import importlib
import inspect
import types
from pathlib import Path

import pytest

import nnfx

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def modules(module=nnfx):
    """Yield a module and all public modules below it, with their names."""
    yield module.__name__, module
    for name in exported(module):
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from modules(value)
    if module is nnfx:
        yield from modules(nnfx.sklearn)  # not in `__all__`, since not every user has scikit-learn


def exported(module):
    """Return the public names of a module: `__all__`, or else the names it defines without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    )


def public_values():
    """Yield every public value with its name, including methods and properties of public classes."""
    for path, module in modules():
        for name in exported(module):
            value = getattr(module, name)
            yield f"{path}.{name}", value
            if inspect.isclass(value):
                of_class = {n: v for each in reversed(value.__mro__) if _is_ours(each) for n, v in vars(each).items()}
                for inner in sorted(of_class):
                    if not inner.startswith("_") and _is_told(of_class[inner]):
                        yield f"{path}.{name}.{inner}", of_class[inner]


def _is_ours(kind):
    return kind.__module__.split(".")[0] == "nnfx"


def _is_told(value):
    return inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)


def signature(value):
    """Return the arguments of a function or a class, and which of them have a default."""
    value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if not callable(value) or isinstance(
        value, types.GenericAlias
    ):  # such as dict[str, int], which differs between releases of Python
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return ""
    words, is_named = [], False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not is_named:
            words.append("*")
        is_named |= each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        words.append(f"{stars}{each.name}{'=' if each.default is not each.empty else ''}")
    return f"({', '.join(words)})"


def public_api():
    return [f"{name}{signature(value)}" for name, value in public_values()]


def test_the_public_api_is_the_one_written_down():
    assert public_api() == SNAPSHOT.read_text().splitlines()


def test_a_key_comes_first_or_is_passed_by_name():
    functions = {name: value for name, value in public_values() if inspect.isfunction(value)}
    places = {}
    for name, function in functions.items():
        parameters = list(inspect.signature(function).parameters.values())
        positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        if "key" in positional:
            places[name] = positional.index("key")
    assert len(places) > 20
    assert {name: place for name, place in places.items() if place} == {}


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_a_public_module_is_imported_by_the_name_that_it_is_known_by(name):
    module = importlib.import_module(name)
    if "." in name:
        parent, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(parent), last) is module
    assert module.__doc__


def test_all_that_is_exported_is_documented():
    lacking = [name for name, value in public_values() if not inspect.getdoc(value)]
    assert lacking == []


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(public_api()) + "\n")
