"""The settings of Sphinx. `make docs` copies this folder, adds the generated pages and builds the copy."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]  # the two extensions below

project, author = "adamfx", "the authors of adamfx"
extensions = ["myst_nb", "sphinx.ext.autodoc", "docstrings", "mathml"]
exclude_patterns = ["**.ipynb_checkpoints", "static"]
nitpicky = True
nitpick_ignore = [("py:class", "jax.jaxlib._jax.Array"), ("py:class", "numpy.ndarray")]
show_warning_types = True

myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown as they are stored
nb_merge_streams = True

autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
add_module_names = False
python_maximum_signature_line_length = 80
toc_object_entries = False

html_theme = "furo"
html_title = "adamfx"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_search_scorer = str(Path(__file__).parent / "static" / "scorer.js")
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
html_domain_indices = False
html_show_copyright = False


def say_language(app, page, template, context, doctree):
    """Korean pages say that they are: for voices, fonts and where lines are broken."""
    if page.startswith("ko/") or page.endswith("_ko"):
        context["language"] = "ko"


def setup(app):
    app.connect("html-page-context", say_language)
