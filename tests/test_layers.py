import subprocess
import sys

MODULES = (
    "kinema",
    "kinema.simulation.session",
    "kinema.train.command",
    "kinema.data",
    "kinema.evaluation",
    "kinema.evaluation.demo",
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
