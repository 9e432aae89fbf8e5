"""Build the API reference: `reference.py FOLDER` writes a page for each module, and fails if a public name is missing.

Run it from the root of the repository, with the extra `docs` installed; `FOLDER/index.html` is where to begin.
"""

import inspect
import sys
import warnings
from pathlib import Path

import pdoc

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.test_public_api import exported, modules


def main(folder: Path) -> None:
    """Build the pages, treating the generator's warnings as errors, and look for every public name."""
    pdoc.render.configure(docformat="google", math=True, search=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc("nnfx", "nnfx.sklearn", output_directory=folder)  # the second is not in `nnfx.__all__`
    missing = []
    for name, module in modules():
        page = folder / f"{module.__name__.replace('.', '/')}.html"
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        values = {each: getattr(module, each) for each in exported(module)}
        missing += [
            f"{name}.{each}" for each in values if not inspect.ismodule(values[each]) and f'id="{each}"' not in text
        ]
    if missing:
        sys.exit(f"expected every public name on its page, not there: {', '.join(missing)}")
    print(f"{len(list(folder.rglob('*.html')))} pages in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
