import pytest

from .drawn import Recording, record


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Four episodes of 16 frames; in the last one the block rests."""
    return record(tmp_path_factory.mktemp("recording") / "drawn", num_episodes=4, length=16, resting=[3])
