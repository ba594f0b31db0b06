"""How the manual is built: `make docs` runs Sphinx on this folder, with every warning an error."""

import shutil
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
# ArviZ 0.x announces its rewrite on the first import of each day; nothing in probq can answer it.
warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)

import inventories

import probq

# The notebooks stay in their own folder, where `make notebooks` executes them; their stored outputs are shown here.
for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
    shutil.copy2(notebook, HERE / "notebooks" / notebook.name)

project = "probq"
author = "the authors of probq"
release = probq.__version__
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "myst_nb",
    "docstrings",
    "links",
    "public_names",
]
exclude_patterns = ["_extensions", "pictures"]
nitpicky = True

# Docstrings write `names` as Markdown does; public_names links those that it knows.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a page that is to be executed says so in its head
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "remove"
nb_merge_streams = True

# Documentation of other libraries. Inventories are not fetched: a build must not depend on seven websites, and where
# changes are checked none of them may be in reach. So the names that the manual links to stand in inventories.txt, with
# their pages; a type hint that names another one is a warning until it is added there.
intersphinx_mapping = inventories.mapping(HERE / "inventories.txt", HERE.parent / "build" / "docs" / "inventories")

html_theme = "furo"
html_title = f"probq {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css", "manual.css"]
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
