"""Equations as MathML, made when the site is built: browsers draw it, no script and no network is needed."""

import re

from docutils import nodes
from sphinx.util import logging

from adamfx.notebook.html import equation

LOG = logging.getLogger(__name__)


def _write(translator, node, display):
    latex = node.astext()
    found = equation(latex, display)
    if (
        "<mi>&</mi>" in found
        or "<mi>\\" in found
        or re.search(r"<mtext>([^<]*\\|[^<]*<[^/])", found)
    ):
        LOG.warning(
            "the equation has parts that latex2mathml does not know: %s", latex, location=node
        )
    translator.body.append(f'<div class="equation">{found}</div>' if display == "block" else found)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: _write(self, node, "inline"), None),
        (lambda self, node: _write(self, node, "block"), None),
    )
    return {"parallel_read_safe": True}
