"""Measure how good a world is: recorded episodes against simulated ones, by protocols that anyone can repeat.

``protocol`` runs every measurement, ``rollout`` simulates segments of recordings and compares, ``result`` is
what is written. A kit (``kinema.kits``) reads the state from frames and sets targets.
"""

from kinema.evaluation.protocol import (
    RecordingOptions,
    ResultOptions,
    Run,
    WorldOptions,
    run_protocol,
)
from kinema.evaluation.report import ReportConfig
from kinema.evaluation.result import Result, Row, Series
from kinema.evaluation.rollout import Segment, load_segments, open_recordings, simulate

__all__ = [
    "RecordingOptions",
    "ReportConfig",
    "Result",
    "ResultOptions",
    "Row",
    "Run",
    "Segment",
    "Series",
    "WorldOptions",
    "load_segments",
    "open_recordings",
    "run_protocol",
    "simulate",
]
