"""How the documentation is built.

``sphinx-build -W -b html docs docs/_build/html`` writes the pages, ``sphinx-build -W -b doctest docs
docs/_build/doctest`` runs their examples.  Neither needs a network.
"""

from importlib.util import find_spec

import zpersist

project = "zpersist"
author = "The zpersist developers"
copyright = author
release = version = zpersist.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest"]
exclude_patterns = ["_build", "changelog.d"]

html_theme = "furo"
html_title = f"zpersist {release}"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# zpersist.testing is described also where these are not installed.
autodoc_mock_imports = [name for name in ("hypothesis", "pytest", "ray") if find_spec(name) is None]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 90
napoleon_google_docstring = False
# A list of attributes makes no second description of those that autodoc finds.
napoleon_use_ivar = True

# Only {doctest}, {testcode} and {testoutput} blocks run here; the docstrings are run by a test of their own.
doctest_test_doctest_blocks = ""
# Every page runs in a directory of its own, as a module whose classes can be pickled.
doctest_global_setup = """
import os, sys, tempfile, types
from pathlib import Path

from zpersist import *

try:
    import hypothesis, numpy, pytest
except ImportError:
    numpy = pytest = None


def _look_up(name, _namespace=globals()):
    try:
        return _namespace[name]
    except KeyError:
        raise AttributeError(name) from None


__name__ = "example"
sys.modules[__name__] = types.ModuleType(__name__)
sys.modules[__name__].__getattr__ = _look_up
_before, _room = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(_room.name)
"""
doctest_global_cleanup = """
os.chdir(_before)
_room.cleanup()
del sys.modules["example"]
"""


def _keep_colons(app, what, name, obj, options, lines):
    # Napoleon takes what stands before a colon in the description of an attribute for its type.
    if what in ("attribute", "data", "property") and lines and ":" in lines[0]:
        lines[:0] = ["..", ""]


def setup(app):
    """Have descriptions of attributes shown as they are."""
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)
