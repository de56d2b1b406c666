"""Sphinx builds the site from these pages: `make docs`."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project, author, copyright = "undo_jax", "the undo_jax developers", "the undo_jax developers"
version = release = version_of("undo-jax")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build", "**/*.csv"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests run them; the tutorial shows what it gave then
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
suppress_warnings = ["misc.highlighting_failure"]  # shell lines with placeholders

html_theme = "furo"
html_title = "undo_jax"
html_static_path, html_css_files = ["site"], ["site.css"]
html_copy_source = False


def setup(app):
    """A file in a folder of methods, attacks and the like is on the page without being listed."""
    app.connect("source-read", _read)


def _read(app, page, source):
    def listed(match):
        package, defined = match[1], re.compile(f"^{match[2] or ''}", re.MULTILINE)
        files = sorted((ROOT / package.replace(".", "/")).glob("*.py"))
        files = [file for file in files if defined.search(file.read_text())]
        names = [f"{package}.{file.stem}".removesuffix(".__init__") for file in files]
        return "\n".join(f".. automodule:: {name}\n   :members:\n" for name in names)

    if page == "api":
        source[0] = re.sub(r"\.\. every module of (\S+)(?: with (\w+))?", listed, source[0])
    source[0] = source[0].replace("](../CONTRIBUTING.md", "](contributing.md")  # it is a page here
