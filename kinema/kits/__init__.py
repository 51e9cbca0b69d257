"""Kits: what kinema knows of single worlds, each in a folder of its own and found by entry point."""

from kinema.kits.kit import (
    DRAWN_SIZE,
    Environments,
    Kit,
    find_environments,
    find_kit,
    find_probe,
    kits,
)
from kinema.kits.probe import Probe, Quantity, Reading, Target, errors

__all__ = [
    "DRAWN_SIZE",
    "Environments",
    "Kit",
    "Probe",
    "Quantity",
    "Reading",
    "Target",
    "errors",
    "find_environments",
    "find_kit",
    "find_probe",
    "kits",
]
