import io

import numpy as np
from PIL import Image

from kinema.simulation.step import Step

from ..worlds import random_frames, random_world


def test_a_notebook_shows_the_frame_of_each_camera() -> None:
    small, large = np.full((16, 24, 3), 200, np.uint8), np.full((32, 32, 3), 90, np.uint8)
    drawn = Step(frame={"small": small, "large": large}, proprio=None, trust=0.5)._repr_png_()
    assert drawn is not None
    with Image.open(io.BytesIO(drawn)) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(100_000) or []}
        # The small camera is brought to the height of the large one, 48 pixels wide, and all is doubled.
        assert image.width >= 2 * (48 + 32)
    assert {(200, 200, 200), (90, 90, 90)} <= colours


def test_a_batch_or_a_step_without_frame_has_no_image() -> None:
    assert Step(frame=np.zeros((2, 16, 16, 3), np.uint8), proprio=None)._repr_png_() is None
    assert Step(frame=None, proprio=np.zeros(3))._repr_png_() is None


def test_a_session_shows_its_step_and_its_trust() -> None:
    world = random_world()
    sim = world.start(random_frames(1, 2)[0])
    before = sim._repr_png_()
    sim.step([0.0] * world.action_dim)
    after = sim._repr_png_()
    assert before is not None
    assert after is not None
    assert after == sim.look().draw("step 1")
    assert after != sim.look().draw("step 0")
