"""Shapes and types are checked at run time in every test; PyTorch leaves the cores to whoever shares them."""

import os
from pathlib import Path

# Before PyTorch loads OpenMP: a server's threads and those of a test each have helpers, and while these spin
# none of the others gets on.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from jaxtyping import install_import_hook

# Before kinema is imported anywhere: the hook rewrites modules as they load. An int is a float, as PEP 484
# says; Self is not checked, because beartype cannot when it decorates methods one by one, as the hook does.
install_import_hook(
    "kinema",
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True,"
    " hint_overrides=beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})))",
)

import pytest  # noqa: E402
import torch  # noqa: E402

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))

REPOSITORY = Path(__file__).parent.parent
DROID = REPOSITORY.parent / "shared" / "data" / "droid_lerobot_v3"


@pytest.fixture(scope="session")
def droid() -> Path:
    """Three real episodes with three cameras, written by LeRobot itself."""
    if not DROID.is_dir():
        pytest.skip(f"the DROID sample is not at ../shared/data/{DROID.name}")
    return DROID
