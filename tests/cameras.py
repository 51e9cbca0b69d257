"""A small recording that looks like a real one, drawn here: an arm over a table, seen by three cameras."""

from pathlib import Path

import numpy as np

from kinema.data import DatasetWriter

FPS = 15
SIZES = {
    "observation.images.front": (72, 96),
    "observation.images.top": (64, 64),
    "observation.images.wrist": (80, 48),
}
"""Height and width of the frames by camera; the wrist's is portrait."""
JOINTS = [f"joint_{number}.pos" for number in range(5)] + ["gripper.pos"]


def write_arm(root: Path, lengths: tuple[int, ...] = (22, 31, 26), seed: int = 0) -> Path:
    """Write episodes of an arm whose joints follow commands late and with noise, as AV1 videos."""
    with DatasetWriter(root, fps=FPS, robot_type="drawn_arm", codec="av1") as writer:
        for number, length in enumerate(lengths):
            rng = np.random.default_rng([seed, number])
            phase, times = rng.uniform(0, 6, 6), np.arange(length)[:, None] / FPS
            commands = 40 * np.sin(1.5 * times + phase) * np.linspace(1.0, 0.3, 6)
            state = np.concatenate([commands[:1], commands[:-1]]) + rng.normal(0, 0.2, (length, 6))
            writer.add(
                frames={key: _draw(key, state, rng) for key in SIZES},
                columns={
                    "action": commands.astype(np.float32),
                    "observation.state": state.astype(np.float32),
                    "next.success": np.arange(length) == length - 1,
                },
                task=("pick the red block", "push the red block")[number % 2],
            )
    return root


def _draw(camera: str, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = SIZES[camera]
    y, x = np.mgrid[:height, :width]
    table = np.stack([90 + 40 * y / height, 80 + 20 * x / width, 70 + 0 * x], -1)
    frames = np.empty((len(state), height, width, 3), np.uint8)
    for t, joints in enumerate(state):
        offset = 0.4 * joints[0] if "wrist" in camera else 0.0
        arm_x, arm_y = width * (0.5 + joints[0] / 120), height * (0.5 + joints[1] / 120)
        image = table.copy()
        image[(abs(y - height * 0.7) < 5) & (abs(x - width * 0.4 + offset) < 5)] = [200, 40, 40]
        image[(abs(x - arm_x) < 3) & (y < arm_y)] = [30, 30, 35]
        image[(abs(y - arm_y) < 3) & (abs(x - arm_x) < 5 + joints[5] / 20)] = [180, 180, 185]
        frames[t] = np.clip(image + rng.normal(0, 3, image.shape), 0, 255)
    return frames
