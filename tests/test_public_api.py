"""What `nnfx` exports changes only on purpose: run this file to write the list anew."""

import importlib
import inspect
from pathlib import Path

import nnfx

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def public_names() -> list[str]:
    lines = []
    for name in sorted(nnfx.__all__):
        value = getattr(nnfx, name)
        lines.append(f"nnfx.{name}")
        if inspect.ismodule(value):
            module = importlib.import_module(value.__name__)
            lines += [f"nnfx.{name}.{inner}" for inner in sorted(module.__all__)]
    return lines


def test_the_public_api_is_the_one_written_down():
    assert public_names() == SNAPSHOT.read_text().splitlines()


def test_a_public_module_is_imported_by_the_name_that_it_is_known_by():
    modules = [name for name in nnfx.__all__ if inspect.ismodule(getattr(nnfx, name))]
    assert len(modules) > 15
    for name in modules:
        assert importlib.import_module(f"nnfx.{name}") is getattr(nnfx, name)


def test_all_that_is_exported_exists_and_is_documented():
    for line in public_names():
        value = nnfx
        for part in line.split(".")[1:]:
            value = getattr(value, part)
        assert value.__doc__


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(public_names()) + "\n")
