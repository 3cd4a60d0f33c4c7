"""The API reference, from the docstrings: ``nox -s docs`` writes it to docs/_build/index.html."""

from sphinx.util import inspect

import ms_gpt

project = "ms_gpt"
copyright = "the authors of ms_gpt, under the Apache License 2.0"
release = version = ms_gpt.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_show_sourcelink = False

autodoc_default_options = {"members": True, "member-order": "bysource"}
# Signatures hold the types; a Cell's shapes stand in its "Inputs" and "Outputs".
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# Imported by callbacks for type checkers only; minGPT's surface has another of the name.
autodoc_type_aliases = {"Trainer": "ms_gpt.training.trainer.Trainer"}
napoleon_use_ivar = True
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "returns_style")]


def show_init(app, what, name, obj, options, signature, return_annotation):
    """Show what ``__init__`` takes: MindSpore gives Cells a ``__new__`` that takes anything."""
    if what == "class" and signature == "(*args, **kwargs)":
        found = inspect.signature(obj.__init__, bound_method=True, type_aliases=app.config.autodoc_type_aliases)
        return inspect.stringify_signature(found, show_return_annotation=False, unqualified_typehints=True), None
    return None


def setup(app):
    """Register the function above with Sphinx."""
    app.connect("autodoc-process-signature", show_init)
