"""Sphinx builds the pages from these files; `make docs` makes every warning an error."""

import os

os.environ["COLUMNS"] = "80"  # the help of the commands, as a terminal of that width shows it

project = "vitdeploy"
copyright = "the vitdeploy developers"  # noqa: A001  (Sphinx's own name)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "vitdeploy"
html_show_sphinx = False
default_role = "code"  # docstrings have names and values in single backticks
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "__new__"}  # object.__new__, which a separated signature adds
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True
