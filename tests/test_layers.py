import re
import subprocess
import sys
from pathlib import Path

import kinema

MODULES = (
    "kinema",
    "kinema.simulation.session",
    "kinema.train.command",
    "kinema.data",
    "kinema.evaluation",
    "kinema.evaluation.demo",
    "kinema.kits.pusht",
    "kinema.kits.dmc",
)
EXTRAS = (
    "fastapi",
    "httpx",
    "mcp",
    "gymnasium",
    "gym_pusht",
    "pymunk",
    "pygame",
    "cv2",
    "mujoco",
    "dm_control",
    "shimmy",
    "huggingface_hub",
    "tensorboard",
    "pandas",
)


def test_importing_loads_no_extra() -> None:
    """What needs no simulator, hub or display must import where none is installed."""
    program = f"import sys, {', '.join(MODULES)}; print(*(set({EXTRAS}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


WORLDS = (
    r"pusht|push-t|t-block|cart.?pole|dm_control|shimmy|pymunk|\bdmc\b|pos_agent|block_pose|"
    r"kinema_coin|kinema_screen|kits\.toys"
)
"""What only kits may name: worlds, their simulators and what these record."""
ALLOWED = {"kinema/__init__.py": 1}
"""Lines that name the bundled world: the example in the documentation of the package."""


def test_the_core_knows_no_world_by_name() -> None:
    root = Path(kinema.__file__).parent
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root.parent).as_posix()
        is_core = not place.startswith(("kinema/kits/", "kinema/worlds/"))
        if is_core and path.suffix in (".py", ".js", ".html", ".css", ".json"):
            lines = [line for line in path.read_text().splitlines() if re.search(WORLDS, line, re.IGNORECASE)]
            if len(lines) > ALLOWED.get(place, 0):
                found[place] = lines
    assert not found
    # What is searched for is where it belongs.
    kit = (root / "kits" / "pusht" / "__init__.py").read_text()
    assert re.search(WORLDS, kit, re.IGNORECASE)
    words = "|".join(path.name for path in (root / "kits").iterdir() if (path / "__init__.py").is_file())
    assert set(words.split("|")) == {"pusht", "dmc", "toys"}, "add the words of the new kit to WORLDS"
