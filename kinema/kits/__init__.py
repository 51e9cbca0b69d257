"""Kits: what kinema knows of single worlds, each in a folder of its own and found by entry point."""

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
    "Probe",
    "Quantity",
    "Reading",
    "Simulator",
    "Success",
    "Target",
    "Twin",
    "errors",
    "find_kit",
    "find_probe",
    "kit_of_environment",
    "kits",
]
