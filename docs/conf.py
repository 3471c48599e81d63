"""Sphinx: Markdown pages, and a reference from docstrings with one page a package folder. `make docs` builds both."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGES = ("students", "bench")

project = "fewstep-bench"
copyright = "the fewstep-bench maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "fewstep-bench"
html_show_sphinx = False
html_copy_source = False
highlight_language = "text"
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"


def modules() -> dict[str, list[str]]:
    """The modules by page: `students` and `bench` for those at the top, and one page for each folder below them."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            *folders, name = path.relative_to(ROOT).with_suffix("").parts
            if name != "__main__" and path.read_text().strip():
                module = folders if name == "__init__" else [*folders, name]
                found.setdefault(".".join(folders[:2]), []).append(".".join(module))
    return {page: sorted(found[page]) for page in sorted(found, key=lambda page: (page.split(".")[0] == "bench", page))}


def write_reference(app) -> None:
    """Writes docs/reference/, which git ignores; pages that do not change keep their dates."""
    folder = DOCS / "reference"
    folder.mkdir(exist_ok=True)
    pages = {title: _page(title, names) for title, names in modules().items()}
    contents = ["Reference", "=========", "", ".. toctree::", "   :maxdepth: 1", "", *(f"   {page}" for page in pages)]
    pages["index"] = "\n".join(contents) + "\n"
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for page, text in pages.items():
        path = folder / f"{page}.rst"
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def _page(title: str, names: list[str]) -> str:
    parts = [title, "=" * len(title), ""]
    for name in names:
        parts += [] if name == title else [name, "-" * len(name), ""]
        parts += [f".. automodule:: {name}", ""]
    return "\n".join(parts)


# Docstrings are written to be read as they stand. Here `name: what it is` at the beginning of a line, or after another
# such item, becomes a list item, an indented block after an empty line a literal one, an arXiv number in brackets a
# link, and what would be markup, as in `(N, *shape)` or `x_t`, stays as it is.
NAMES = r"[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*: (?=\S)"
ITEM = re.compile(NAMES)
NEXT_ITEM = re.compile(rf"(?<=\.) (?={NAMES})")
ARXIV = re.compile(r"\[(\d{4}\.\d{4,5})\]")
CODE = re.compile(r"`+([^`]+)`+")


def restructured(lines: list[str]) -> list[str]:
    """The reStructuredText of a docstring."""
    result: list[str] = []
    inside = ""  # "item" in a list item, "literal" in a literal block
    for line in lines:
        fresh = not (result and result[-1])
        goes_on = inside == "item" and not fresh and (line.startswith(" ") or result[-1][-1] not in ".:;)")
        if not line.strip():
            result.append("")
        elif inside == "literal" and line.startswith(" "):
            result.append(line)
        elif goes_on:
            result.append("  " + _escaped(line.strip()))
        elif line.startswith(" "):
            result += [*([] if fresh else [""]), "::", "", line]
            inside = "literal"
        elif line.startswith("- ") or (ITEM.match(line) and (result or line[0].islower())):
            result += [""] if not fresh and inside != "item" else []
            result += [_escaped(line)] if line.startswith("- ") else map(_item, NEXT_ITEM.split(line))
            inside = "item"
        else:
            result += [""] if not fresh and inside else []
            result.append(_escaped(line))
            inside = ""
    return result


def _item(text: str) -> str:
    names, _, rest = text.partition(": ")
    return f"- {', '.join(f'``{name}``' for name in names.split(', '))}: {_escaped(rest)}"


def _escaped(text: str) -> str:
    """Text in which only code is markup, with links to papers."""
    parts = CODE.split(text)
    for i in range(0, len(parts), 2):
        plain = re.sub(r"([\\*_|])", r"\\\1", parts[i])
        parts[i] = ARXIV.sub(r"[`\1 <https://arxiv.org/abs/\1>`__]", plain)
    for i in range(1, len(parts), 2):
        parts[i] = f"``{parts[i]}``\\ "
    return "".join(parts)


def _process(app, what, name, obj, options, lines) -> None:
    lines[:] = restructured(lines)


def setup(app) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", _process)
