"""Kits: what kinema knows of single worlds, each in a folder of its own and found by entry point.

How to add a kit, here in ``kinema/kits/NAME/`` or in a package of your own:

1. Make a ``Kit`` and give it the parts that your world has; each is optional, and so is what needs it:

   - ``probe``: an object of the protocol ``Probe`` reads the state from frames. ``kinema evaluate`` and the
     server then report errors of things, not of frames alone.
   - ``environments``: the arguments with which ``kinema record`` makes the Gymnasium environments.
   - ``simulator``: a ``Simulator`` wraps an environment as a ``Twin``, which is set to recorded states.
     Physical floors and the real simulator beside a served session need it.
   - ``success``: when a state counts as a goal that was reached. With ``simulator`` it gives tasks to
     ``kinema evaluate planning``.
   - ``targets``: values that rows of ``kinema evaluate`` must reach, by the key of the row.
   - ``named_goals`` and ``pointer``: what the page and the tools of the server offer.

   The module of the kit is imported by every command: import simulators inside of functions.

2. Name it in ``pyproject.toml``, and beside it scripted policies (callables that return a policy, for
   ``kinema record --policy``) and recipes (functions from a dataset to a ``Recipe``)::

       [project.entry-points."kinema.kits"]
       slider = "my_package.slider:KIT"

       [project.entry-points."kinema.policies"]
       slider-play = "my_package.play:make"

       [project.entry-points."kinema.recipes"]
       slider = "my_package.recipe:slider"

3. Test it by ``check_kit(KIT, episode)`` with a recorded episode of your world.

A kit belongs to worlds of its name and to recordings that have all its ``columns``. Nothing imports a kit by
name: what all worlds share is asked for by ``find_kit`` and ``kit_of_environment``.
"""

from kinema.kits.check import KitError, check_kit
from kinema.kits.kit import (
    DRAWN_SIZE,
    Environments,
    Kit,
    find_kit,
    find_probe,
    kit_of_environment,
    kits,
)
from kinema.kits.probe import Probe, Quantity, Reading, Target, errors
from kinema.kits.simulator import Simulator, Success, Twin

__all__ = [
    "DRAWN_SIZE",
    "Environments",
    "Kit",
    "KitError",
    "Probe",
    "Quantity",
    "Reading",
    "Simulator",
    "Success",
    "Target",
    "Twin",
    "check_kit",
    "errors",
    "find_kit",
    "find_probe",
    "kit_of_environment",
    "kits",
]
