"""Configuration of the documentation site; ``make docs`` builds it."""

import importlib.util
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from regjax._version import __version__  # noqa: E402

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = _PROJECT["name"]
author = "The regjax developers"
copyright = author
release = version = __version__

extensions = [
    "docs.generate",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
default_role = "card"
nitpicky = True
# Types of other libraries, whose documentation may be out of reach when this one is built.
nitpick_ignore_regex = [
    (r"py:exc", r"Nothing\."),  # what a docstring says that it raises
    (r"py:.*", r"(jax|jaxlib|numpy|optax|flax|collections|typing|np|jnp|nnx|Any|Callable|ArrayLike|Array).*"),
]
exclude_patterns = ["_build", "generate"]
templates_path = ["_templates"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": False}
napoleon_use_ivar = True
python_maximum_signature_line_length = 300
toc_object_entries = False

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = "regjax"
# MathJax from an installed package: formulas are rendered without a network too.
_MATHJAX = importlib.util.find_spec("sphinx-mathjax-offline")
html_static_path = ["_static", str(Path(_MATHJAX.origin).parent / "static")]
mathjax_path = "mathjax/tex-chtml.js"
html_css_files = ["regjax.css"]
html_js_files = [("filter.js", {"defer": "defer"})]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "regjax"},
    "header_links_before_dropdown": 6,
    "icon_links": [{"name": "Source", "url": _PROJECT["urls"]["Source"], "icon": "fa-brands fa-github"}],
    "show_toc_level": 2,
    "navigation_depth": 3,
    "collapse_navigation": True,
    "show_nav_level": 1,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_context = {"default_mode": "auto"}
