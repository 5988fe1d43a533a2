"""The documentation site: `make docs`.

Its source folder is the repository, not docs/: so a page's link to README.md or to a module is the
same on GitHub and on the site.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))
from docs import tables

project = "gradshard"
author = "The gradshard authors"
release = installed_version("gradshard")
copyright = author  # noqa: A001 - Sphinx's name

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

root_doc = "docs/index"
include_patterns = [
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/*.md",
    "docs/*.md",
    "docs/decisions/*.md",
]
exclude_patterns = [".*", "dist", "site", "layers", "functions", "tests", "examples"]

# Anchors are GitHub's, and a link to one that is not there fails the build (`-W`).
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
# Optional packages, which the documentation is built without.
autodoc_mock_imports = ["flwr", "torch"]
# Types of other projects have no page here, nor have those inside the package.
WITHOUT_PAGES = (
    "aggregation|aws|client|formats|planning|privacy|records|robust|s3|specs|stragglers|tickets"
    "|torch|updates|verification"
)
nitpick_ignore_regex = [
    ("py:(class|obj|data)", r"(?!gradshard(_core)?\.).*"),
    ("py:class", rf"gradshard(_core)?\.({WITHOUT_PAGES})\..*"),
]
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = True
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"gradshard {release}"
html_short_title = "gradshard"
html_static_path = ["assets"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_extra_path = ["front"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_domain_indices = False
# `$ ` before a command and what it prints stay behind.
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True


def fill_tables(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Fill in a page's tables, before Sphinx reads it."""
    source[0] = tables.filled(source[0])


def setup(app: Sphinx) -> None:
    """Have Sphinx fill in the tables."""
    app.connect("source-read", fill_tables)
