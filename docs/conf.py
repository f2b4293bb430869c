"""How Sphinx builds the documents: `make docs`, or `sphinx-build -W --keep-going -n docs build/docs`."""

import logging
import sys
from pathlib import Path

import torch  # noqa: F401  (before openmm, which autodoc would load first)

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

from openmm_cgflow.version import __version__

project = "openmm_cgflow"
release = version = __version__
copyright = "the openmm_cgflow founders, MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "mathml"]
exclude_patterns = ["extensions"]
logging.getLogger("pymbar").setLevel(logging.ERROR)  # what it says of itself when openmmtools imports it
html_theme = "furo"
html_title = "openmm_cgflow"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # which would be fetched: not possible where pages are opened as files
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
html_math_renderer = "mathml"

# pages
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the pages that are included begin with their own title

# docstrings: what stands in backticks is code, and a link where the name is known
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # formulas and shapes in backticks, which are no names
    ("py:(class|data|exc)", r"(openmm|mdtraj|numpy|np|torch|unit|app|pathlib|collections)\..*"),
    ("py:class", "ContextCache|ThermodynamicState|SamplerState"),  # of openmmtools
    ("py:class", r"openmm_cgflow\..*"),  # types in signatures that are not documented themselves
]
