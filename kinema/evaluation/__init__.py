"""How good a world is: recorded episodes against simulated ones, by protocols that anyone can run again.

A kit's probe says what is measured in frames (``kinema.kits``), ``rollout`` drives a world with recorded
actions, ``report`` is the protocol, ``simulate`` the command.
"""

from kinema.evaluation.report import ReportConfig, measure
from kinema.evaluation.result import Result, Row, Series
from kinema.evaluation.rollout import Clip, Sweep, compare, load_clips, repeat_last, roll_out
from kinema.kits import Probe, Quantity, Reading, Target, find_probe

__all__ = [
    "Clip",
    "Probe",
    "Quantity",
    "Reading",
    "ReportConfig",
    "Result",
    "Row",
    "Series",
    "Sweep",
    "Target",
    "compare",
    "find_probe",
    "load_clips",
    "measure",
    "repeat_last",
    "roll_out",
]
