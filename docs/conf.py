"""The API reference, from the docstrings: ``nox -s docs`` writes it to docs/_build/index.html."""

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
