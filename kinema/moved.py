"""Modules of 0.1.0 under their old names: imports of them work, and say where the module is now."""

import importlib
import sys
import types
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

MOVED = {
    "kinema.arena": "kinema.simulation.real_env",
    "kinema.client": "kinema.serve.client",
    "kinema.demo": "kinema.evaluation.demo",
    "kinema.dynamics": "kinema.model.transformer",
    "kinema.env": "kinema.simulation.env",
    "kinema.goals": "kinema.model.goals",
    "kinema.starts": "kinema.simulation.starts",
    "kinema.together": "kinema.simulation.batching",
    "kinema.view": "kinema.data.drawing",
    "kinema.world_model": "kinema.model.world",
}
"""The module that holds the public names of each old one."""


class _Moved(MetaPathFinder, Loader):
    """Finds old modules: one that hands over the names of the new one."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        name, new_name = module.__name__, MOVED[module.__name__]
        # The importing line is the first one outside of the import machinery.
        warnings.warn(f"{name} is now {new_name}", DeprecationWarning, stacklevel=2)
        new = importlib.import_module(new_name)
        module.__dict__.update({key: value for key, value in vars(new).items() if key[:2] != "__"})


def install() -> None:
    """Let the import system find the old modules, where nothing else has their names."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
