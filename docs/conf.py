"""The documentation's configuration, for Sphinx: `make docs` builds it into target/docs, and a warning fails.

Sphinx with furo and MyST, and not MkDocs with mkdocstrings: MkDocs 1 has no maintainer any more. Of eight
planted mistakes (a link without a page, two without an anchor, a reference without an object; a picture, an
include and a page of the table of contents that are missing; a page that is in none) Sphinx 9.0.4 finds all,
MkDocs 1.6.1 all but the include, and its successor Zensical 0.0.73 the first four. The build takes ten
seconds; nothing is fetched, then or by the pages.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import tallow

ROOT = Path(__file__).resolve().parents[1]

project = "tallow"
author = "the authors of tallow"
copyright = "the authors of tallow, Apache-2.0"
version = release = tallow.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_static"]
nitpicky = True
# Types of other packages have no page here. Ours must have one.
nitpick_ignore_regex = [("py:.*", r"(?!tallow).*")]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# The outputs of notebooks are those that were committed; a test runs them.
nb_execution_mode = "off"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_type_aliases = {"PromptLike": "Prompt"}
python_use_unqualified_type_names = True
maximum_signature_line_length = 84
default_role = "code"

html_theme = "furo"
html_title = f"tallow {version}"
html_static_path = ["_static"]
html_css_files = ["tallow.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"


# Texts of the repository that are pages here

#: Where the site shows a file of the repository, or something of a folder.
PAGES = {
    "README.md": "/index.md",
    "ARCHITECTURE.md": "/internals/architecture.md",
    "CHANGELOG.md": "/changelog.md",
    "CONTRIBUTING.md": "/contributing.md",
    "benches/RESULTS.md": "/performance/results.md",
    "benches/results.svg": "/../benches/results.svg",
    "docs/howto": "/howto/pick-a-model.md",
    "examples": "/howto/examples.md",
    "findings": "/findings.md",
    "findings/README.md": "/findings.md",
    "notebooks": "/notebooks/01-first-steps.ipynb",
}
# MyST follows docs/notebooks to where it leads, which is outside of the source; the role does not.
_NOTEBOOK = re.compile(r"\[([^]`\"\n]+)\]\(/(notebooks/[\w-]+)\.ipynb\)")
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=(?:#[^)\s]*)?\))")


def site_links(text: str, folder: Path) -> str:
    """Links of a text of the repository are meant from its own folder; here they lead to pages. One that
    leads to none stays, and Sphinx warns."""

    def moved(link: re.Match[str]) -> str:
        target = os.path.relpath(folder / link[0], ROOT)
        if target.startswith("findings/") and target.endswith(".sh"):
            return f"/../{target}"  # to be downloaded
        page = f"/{target.removeprefix('docs/')}" if target.startswith(("docs/", "notebooks/")) else link[0]
        return PAGES.get(target, page)

    return _NOTEBOOK.sub(r"{doc}`\1 </\2>`", _LINK.sub(moved, text))


def included(app: Any, path: Path, docname: str, content: list[str]) -> None:
    content[0] = site_links(content[0], (Path(app.srcdir) / path).resolve().parent)


def notebook(app: Any, docname: str, content: list[str]) -> None:
    """docs/notebooks is a link to a folder beside docs."""
    if docname.startswith("notebooks/"):
        content[0] = site_links(content[0], ROOT / "notebooks")


# The native half: what its stub says, which has types, and is what editors show


def stubs() -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """What ``tallow`` takes from the native half as it is: classes, methods and functions, by their names."""
    tree = ast.parse((ROOT / "python" / "tallow" / "_core.pyi").read_text(encoding="utf-8"))
    found: dict[str, ast.ClassDef | ast.FunctionDef] = {}
    for node in tree.body:
        ours = isinstance(node, (ast.ClassDef, ast.FunctionDef)) and getattr(tallow, node.name, None)
        if ours and ours is getattr(tallow._core, node.name):
            found[f"tallow.{node.name}"] = node
            inner = node.body if isinstance(node, ast.ClassDef) else ()
            members = (one for one in inner if isinstance(one, ast.FunctionDef))
            found.update({f"tallow.{node.name}.{member.name}": member for member in members})
    return found


STUBS = stubs()
#: Whose constructors are no business of users; nor are those of dataclasses.
MADE_BY_US = ("Stream", "AsyncStream", "Scores")


def stub_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    node = STUBS.get(name)
    if node is not None:
        typed = isinstance(node, ast.FunctionDef) and what == "attribute" and node.returns
        kind = f"``{ast.unparse(typed)}``. " if typed else ""
        lines[:] = [*f"{kind}{ast.get_docstring(node) or ''}".splitlines(), ""]


def shown_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    if isinstance(obj, type) and (dataclasses.is_dataclass(obj) or obj.__name__ in MADE_BY_US):
        return "", None
    node = STUBS.get(f"{name}.__new__") or STUBS.get(name)
    if not isinstance(node, ast.FunctionDef) or what == "attribute":
        # What is there to be refused by name is no argument.
        return signature and signature.replace(", **unknown: object", ""), returns
    given = copy.deepcopy(node.args)
    given.args = [one for one in given.args if one.arg not in ("self", "cls")]
    result = node.returns if what != "class" else None
    return f"({ast.unparse(given)})", ast.unparse(result) if result else None


def setup(app: Any) -> None:
    app.connect("include-read", included)
    app.connect("source-read", notebook)
    app.connect("autodoc-process-docstring", stub_docstring)
    app.connect("autodoc-process-signature", shown_signature)
