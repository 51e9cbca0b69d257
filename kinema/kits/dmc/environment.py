"""Environments of the DeepMind Control Suite: how large their frames are, and at what rate they run."""

from collections.abc import Mapping
from typing import Any

from kinema.kits import DRAWN_SIZE

OVERSAMPLING = 2
"""Frames are drawn so many times as wide and high as asked for: without multisampling, thin things come and
go as they move, and this is cheaper."""


def arguments(
    given: Mapping[str, Any], size: tuple[int, int] | None
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Fill in how frames are drawn; ``draw_plainly`` reduces them to the size that is returned, the suite's
    own where the user asks for it."""
    # Every command imports its kits, also where Gymnasium is not installed.
    from kinema.data.mujoco import FLAGS_OFF

    drawn = size or DRAWN_SIZE
    options = given.get("render_kwargs", {})
    plain = {
        "height": OVERSAMPLING * drawn[0],
        "width": OVERSAMPLING * drawn[1],
        "camera_id": 0,
        "render_flag_overrides": dict.fromkeys(FLAGS_OFF, False),
    }
    reduced = size if {"height", "width"} & set(options) else drawn
    return {**given, "render_kwargs": {**plain, **options}}, reduced


def tell_rate(env: Any) -> None:
    """Make an environment say how many steps it makes a second: Shimmy says how many milliseconds one
    takes."""
    env.unwrapped.metadata = {**env.unwrapped.metadata, "render_fps": 1.0 / env.unwrapped.control_timestep()}
