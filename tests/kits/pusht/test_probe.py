import numpy as np
import pytest

from kinema.kits import Probe, Reading, errors, find_probe
from kinema.kits.pusht.probe import PushTProbe
from kinema.types import Episode

from ...evaluation.drawn import CAMERA, FAR, Recording, draw

PROBE = PushTProbe(CAMERA)
AGENT, BLOCK, ANGLE = PROBE.quantities


def reading(
    *, agent: tuple[float, float] = (0, 0), angle: float = 0.0, is_found: bool = True, is_certain: bool = True
) -> Reading:
    values = {"agent": np.array([agent]), "block": np.zeros((1, 2)), "angle": np.array([[angle]])}
    found, certain = ({key: np.array([flag]) for key in values} for flag in (is_found, is_certain))
    return Reading(values=values, is_found=found, is_certain=certain, is_valid=found["agent"])


def test_distances_are_straight_lines_and_angles_go_around() -> None:
    assert errors(AGENT, reading(agent=(3, 4)), reading()) == pytest.approx([5.0])
    for angle, other, expected in ((179, -179, 2), (-90, 90, 180), (10, -20, 30), (0, 720, 0)):
        found = errors(ANGLE, reading(angle=angle), reading(angle=other))
        assert found == pytest.approx([expected])


def test_what_is_not_found_is_as_wrong_as_can_be_and_what_is_not_known_is_left_out() -> None:
    lost = reading(is_found=False)
    assert errors(AGENT, lost, reading()) == pytest.approx([64 * 2**0.5])
    assert errors(ANGLE, lost, reading()) == [180.0]
    assert np.isnan(errors(AGENT, reading(), reading(is_certain=False))).all()
    # A reading that is not certain is still one: only the reference has to be.
    assert errors(AGENT, reading(is_certain=False), reading()) == [0.0]


def test_pictures_and_recorded_state_give_the_same_reading(recording: Recording) -> None:
    episode = recording.dataset.episode(0)
    seen, recorded = PROBE.read(episode.frames), PROBE.recorded(episode)
    assert recorded is not None
    assert seen.is_valid.all()
    assert len(seen) == len(recorded) == len(episode)
    for quantity, most in ((AGENT, 0.3), (BLOCK, 0.4), (ANGLE, 3.0)):
        assert errors(quantity, seen, recorded).max() < most
    # Row t of the columns belongs to picture t, not to its neighbours.
    assert np.median(errors(AGENT, seen[1:], recorded[:-1])) > 5


def test_a_block_that_is_mostly_outside_is_no_reference() -> None:
    block = np.array([[256.0, 256.0, 0.0], [256.0, -40.0, 0.0]], np.float32)
    columns = {"info.pos_agent": np.full((2, 2), 100.0, np.float32), "info.block_pose": block}
    episode = Episode(index=0, fps=10.0, task=None, frames={}, columns=columns)
    recorded = PROBE.recorded(episode)
    assert recorded is not None
    assert recorded.is_certain["agent"].tolist() == [True, True]
    assert recorded.is_certain["block"].tolist() == recorded.is_certain["angle"].tolist() == [True, False]
    seen = PROBE.read({CAMERA: np.stack([draw((100, 100), pose) for pose in block])})
    assert seen.is_certain["block"].tolist() == [True, False]
    assert not PROBE.read({CAMERA: draw(FAR, block[0])[None]}).is_found["agent"].any()


def test_the_probe_is_chosen_by_the_world_or_its_recordings(recording: Recording) -> None:
    for found in (
        find_probe("pusht", (CAMERA,)),
        find_probe("mine", (CAMERA,), recording.dataset.features),
    ):
        assert isinstance(found, PushTProbe)
        assert isinstance(found, Probe)
    assert find_probe("mine", (CAMERA,)) is None
    assert find_probe("pusht", ()) is None
    bare = Episode(index=0, fps=10.0, task=None, frames={}, columns={"action": np.zeros((1, 2))})
    assert PROBE.recorded(bare) is None
