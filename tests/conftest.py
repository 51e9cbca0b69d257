"""Shapes and types are checked at run time in every test; PyTorch leaves the cores to whoever shares them."""

import os
from pathlib import Path

# Before PyTorch loads OpenMP, and for the processes that tests start too. Threads of a server and those of a
# test each have helpers: together they are as many as the cores, and none spins while it waits.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from jaxtyping import install_import_hook  # noqa: E402

# Before kinema is imported anywhere: the hook rewrites modules as they load. An int is a float, as PEP 484
# says; Self is not checked, because beartype cannot when it decorates methods one by one, as the hook does.
install_import_hook(
    "kinema",
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True,"
    " hint_overrides=beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})))",
)

import pytest  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
DROID = REPOSITORY.parent / "shared" / "data" / "droid_lerobot_v3"


@pytest.fixture(scope="session")
def droid() -> Path:
    """Three real episodes with three cameras, written by LeRobot itself."""
    if not DROID.is_dir():
        pytest.skip(f"the DROID sample is not at ../shared/data/{DROID.name}")
    return DROID
