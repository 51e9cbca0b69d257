"""Drawing MuJoCo's environments quickly and without a display. MuJoCo itself is imported only by them."""

import ctypes
import importlib.util
import os
import sys
from typing import Any

import gymnasium
import numpy as np

from kinema.data.spaces import RecordError, resize

BACKENDS = {"egl": ("libEGL.so.1", "libOpenGL.so.0"), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6")}
"""Libraries by the value of MUJOCO_GL: EGL needs both, OSMesa either."""
PACKAGES = {"egl": "libegl1 libopengl0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
"""Debian's packages with these libraries."""
FLAGS_OFF = ("shadow", "reflection", "skybox", "haze")
"""Effects that are left out of frames: they take most of the time and show nothing of the robot."""


def choose_backend() -> None:
    """Set MUJOCO_GL to what draws without a display, where MuJoCo is installed, nothing is set and there is
    no display. Call it before MuJoCo is imported, which looks only then."""
    has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if "MUJOCO_GL" in os.environ or has_display or not sys.platform.startswith("linux"):
        return
    if importlib.util.find_spec("mujoco") is not None:
        working = (name for name in BACKENDS if is_loadable(name))
        os.environ["MUJOCO_GL"] = next(working, "disabled")


def is_loadable(backend: str) -> bool:
    """Check that the libraries of a backend can be loaded; backends that are not in ``BACKENDS`` pass."""
    if backend not in BACKENDS:
        return True
    loaded = [_loads(library) for library in BACKENDS[backend]]
    return all(loaded) if backend == "egl" else any(loaded)


def missing_backend() -> str | None:
    """Name the packages to install where the libraries of the chosen backend are missing, else None."""
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen != "disabled" and is_loadable(chosen):
        return None
    ways = " or ".join(f"`apt-get install {PACKAGES[name]}` and MUJOCO_GL={name}" for name in BACKENDS)
    return f"the libraries to draw without a display are missing: {ways}"


def draw_plainly(
    env: gymnasium.Env[Any, Any], size: tuple[int, int] | None = None
) -> gymnasium.Env[Any, Any]:
    """Let MuJoCo draw without shadows, multisampling and scenery, and bring its frames to a height and
    width.

    Nothing may have been drawn yet. Environments without MuJoCo stay as they are.

    Raises:
        RecordError: it cannot draw.
    """
    model = _model(env)
    if model is None:
        return env
    # Shadow maps of 4096 pixels and multisampling are most of the work of a renderer without a GPU. They are
    # made with the renderer, and that is made with the first frame.
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    env.reset(seed=0)
    try:
        env.render()
    except Exception as error:
        advice = missing_backend() or "another MUJOCO_GL (egl, osmesa, glfw) may work"
        raise RecordError(f"MuJoCo cannot draw ({type(error).__name__}: {error}): {advice}") from error
    viewer = getattr(getattr(env.unwrapped, "mujoco_renderer", None), "viewer", None)
    if viewer is not None:
        flags = sys.modules["mujoco"].mjtRndFlag
        for name in FLAGS_OFF:
            viewer.scn.flags[getattr(flags, f"mjRND_{name.upper()}")] = 0
    return env if size is None else _Reduced(env, size)


class _Reduced(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Environment whose rendered frames are resized."""

    def __init__(self, env: gymnasium.Env[Any, Any], size: tuple[int, int]):
        super().__init__(env)
        self._size = size

    def render(self) -> Any:
        return resize(np.asarray(super().render()), self._size)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _model(env: gymnasium.Env[Any, Any]) -> Any:
    """Find MuJoCo's model in an environment of Gymnasium or in one that has ``physics``, else None."""
    if "mujoco" not in sys.modules:
        return None
    plain: Any = env.unwrapped
    for owner in (plain, getattr(plain, "physics", None)):
        model = getattr(owner, "model", None)
        model = getattr(model, "ptr", model)
        if isinstance(model, sys.modules["mujoco"].MjModel):
            return model
    return None
