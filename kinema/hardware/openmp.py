"""How PyTorch's threads wait for one another; to be set before PyTorch is imported."""

import os

SPINS = 1000
"""Turns that a thread of GNU OpenMP spins before it sleeps, of 300,000 by default.

Steps of 16 clients per second on two cores, idle and beside eight other programs: 820 and 29 with 20,000
turns, 820 and 295 with 1,000, 514 and 431 with 100, 513 and 482 with none (OMP_WAIT_POLICY=passive).
"""


def spin_briefly() -> None:
    """Let threads that wait give their processor to other programs soon, unless the user has set it."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
