"""The script that writes models of other libraries, as a module."""

import importlib.util

from helpers.places import ROOT

_spec = importlib.util.spec_from_file_location(
    "make_foreign_models", ROOT / "scripts/make_foreign_models.py"
)
make_foreign_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_foreign_models)
