"""Sphinx builds these pages: ``make docs``, or ``sphinx-build -W --keep-going docs/en docs/_build``.

The pages are Markdown that GitHub shows too. Only those below ``reference/`` need Sphinx: ``registered.py`` fills them
with the docstrings of all registered classes.
"""
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(FOLDER), str(ROOT)]  # registered.py, and the mmsynth of this checkout

project = 'mmsynth'
author = 'The mmsynth authors'
release = re.search(r"__version__ = '(.+)'", (ROOT / 'mmsynth' / 'version.py').read_text(encoding='utf-8')).group(1)

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'registered']
html_theme = 'furo'
html_title = f'mmsynth {release}'
html_show_copyright = False

myst_heading_anchors = 3  # links to a heading, as on GitHub
suppress_warnings = ['misc.highlighting_failure']  # examples that leave something out (…) are no valid Python

autodoc_typehints = 'description'  # types stand with the arguments that the docstring explains
autodoc_typehints_description_target = 'documented'
autodoc_typehints_format = 'short'
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A reference to a class or function of mmsynth must lead there. Types of other packages have no page here, nor have
# modules, nor short names that a reader of the code understands.
nitpicky = True
nitpick_ignore_regex = [(r'py:.*', r'(?!mmsynth\.).*'), (r'py:mod', r'.*')]

REST = '<pages not listed here>'


def list_other_pages(app: Sphinx, page: str, text: list[str]) -> None:
    """Put the pages that index.md does not name into its place for them, so that a new page needs no edit there."""
    if page != 'index':
        return
    app.env.note_reread()  # when pages come or go, not only when the index changes
    named = set(text[0].split())
    rest = sorted(other for other in app.env.found_docs if '/' not in other and other not in named | {'index'})
    text[0] = text[0].replace(REST, '\n'.join(rest))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect('source-read', list_other_pages)
