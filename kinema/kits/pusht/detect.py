"""Finds the agent and the block in pictures of PushT, by colour and by fitting their shapes.

Everything is measured in 64ths of the picture, x to the right and y down, whatever the picture's own size:
the simulator's unit is a 512th, so a recorded position divided by 8. The block's position is its centre of
mass, its angle the simulator's. The picture is unmixed into agent, block and goal linearly, so soft edges
count for what they cover; a disc and a T are then fitted to what was found. The fit knows what the picture
cannot show: the part of the block that lies outside, under the wall's line, or under the agent.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

UNITS = 512.0
"""Width of the simulator's world."""
SCALE = UNITS / 64.0
"""Simulator units in one 64th of the picture."""
AGENT_RADIUS = 15.0
DISC_CENTRE = 0.5
"""The simulator draws a disc around a corner of the pixel at its position, half a unit up and left."""
CENTRE_OF_MASS = np.array([0.0, 45.0])
"""Of the block, from the origin of its body, at angle 0."""
BARS = ((-60.0, 60.0, 0.0, 30.0), (-15.0, 15.0, 30.0, 120.0))
"""The two boxes of the T at angle 0: left, right, top, bottom from the origin of its body."""
AGENT_SHARE = 0.88
"""What the unmixing finds of an agent drawn by the simulator, whose outline is darker than its inside."""
OUTLINE = 2.0
"""The simulator draws the outline of the block this much outside its shape."""
WALL = 9.0
"""Nothing nearer than this to the picture's rim is read: the walls are drawn there, over everything."""

BACKGROUND = np.array([255.0, 255.0, 255.0])
AGENT = np.array([78.0, 126.0, 255.0])
AGENT_OUTLINE = np.array([65.0, 105.0, 225.0])
BLOCK = np.array([143.0, 163.0, 184.0])
BLOCK_OUTLINE = np.array([119.0, 136.0, 153.0])
GOAL = np.array([144.0, 238.0, 144.0])

POOR_FIT = 0.12
"""Squared error of the fitted T over its area above which more starts are tried."""

_CELL = 0.5  # Resolution of the shape table, in the simulator's units.
_REACH = 120.0  # The shape table ends this far from the centre of mass; the T ends at 79.
_CHUNK = 64  # Pictures worked on at once: few enough to stay in the processor's cache.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What still counts as one agent and one block. Real pictures lie well inside (see tests)."""

    agent_area: tuple[float, float] = (0.62, 1.5)
    """All the agent's colour in the picture, over what one agent at the found place shows."""
    agent_colour: float = 75.0
    """Distance of the agent's core from its colour (0 to 441)."""
    agent_outside: float = 0.3
    """Agent colour away from the fitted disc, over the area of one agent."""
    block_area: tuple[float, float] = (0.8, 1.35)
    """All the block's colour in the picture, over what one block at the found pose shows."""
    block_colour: float = 32.0
    """Distance of the block's core from its colour (0 to 441)."""
    block_misfit: float = 0.22
    """Block colour missing inside the fitted T and present outside it, over the area that should show."""
    block_visible: float = 0.1
    """Share of the block that must be visible to be judged at all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """What was found in N pictures. Positions are given for every picture, and mean nothing where
    ``has_agent`` or ``has_block`` is False."""

    agent: np.ndarray
    """``N 2``: centre of the agent, 64ths of the picture."""
    block: np.ndarray
    """``N 2``: centre of mass of the block, 64ths of the picture; it may lie outside the picture."""
    angle: np.ndarray
    """``N``: angle of the block, radians in (-pi, pi]."""
    agent_area: np.ndarray
    """``N``: the agent's colour in the whole picture, over what one agent there shows: about 1 for one."""
    block_area: np.ndarray
    """``N``: the same of the block, its part outside the picture left out of both."""
    agent_colour: np.ndarray
    """``N``: distance of the agent's core from its colour, 0 to 441."""
    block_colour: np.ndarray
    """``N``: distance of the block's core from its colour, 0 to 441."""
    agent_outside: np.ndarray
    """``N``: agent colour away from the fitted disc, over the area of one agent."""
    block_misfit: np.ndarray
    """``N``: how badly the T fits, over the area that should show: 0 is perfect."""
    block_visible: np.ndarray
    """``N``: share of the block that lies inside the picture and not under the walls."""
    has_agent: np.ndarray
    """``N`` bool: exactly one agent of the right size and colour."""
    has_block: np.ndarray
    """``N`` bool: exactly one block of the right size, shape and colour."""

    @property
    def is_valid(self) -> np.ndarray:
        """``N`` bool: exactly one agent and exactly one block, both of the right size and colour."""
        return self.has_agent & self.has_block


class Pose(NamedTuple):
    """Where the things are, in the units of :class:`Detection`."""

    agent: np.ndarray
    block: np.ndarray
    angle: np.ndarray


def pose_from_state(agent_position: np.ndarray, block_pose: np.ndarray) -> Pose:
    """The simulator's state (``N 2``, and ``N 3``: origin of the block's body and its angle) as a pose."""
    angle = np.asarray(block_pose[..., 2], dtype=np.float64)
    x, y = CENTRE_OF_MASS
    offset = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], -1)
    block = np.asarray(block_pose[..., :2], dtype=np.float64) + offset
    return Pose(np.asarray(agent_position, dtype=np.float64) / SCALE, block / SCALE, wrap_angle(angle))


def visible_share(block_pose: np.ndarray) -> np.ndarray:
    """``N``: share of the block at the simulator's poses ``N 3`` that can be seen, as in a detection."""
    # Squares of 3 units, of which all sides of the T are multiples.
    across = np.arange(-58.5, 60.0, 3.0)
    u, v = (axis.ravel() for axis in np.meshgrid(across, across + 60.0))
    is_part = np.zeros(len(u), dtype=bool)
    for left, right, top, bottom in BARS:
        is_part |= (u > left) & (u < right) & (v > top) & (v < bottom)
    u, v = u[is_part], v[is_part]
    x, y, angle = (np.asarray(block_pose, dtype=np.float64)[:, index, None] for index in range(3))
    seen_x, seen_y = x + np.cos(angle) * u - np.sin(angle) * v, y + np.sin(angle) * u + np.cos(angle) * v
    reach = UNITS / 2 - WALL
    is_inside = (np.abs(seen_x - UNITS / 2) < reach) & (np.abs(seen_y - UNITS / 2) < reach)
    return is_inside.mean(axis=1)


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """The same angle in (-pi, pi]."""
    return np.pi - (np.pi - angle) % (2 * np.pi)


def detect(frames: np.ndarray, limits: Limits | None = None) -> Detection:
    """Finds the agent and the block in ``N H W 3`` uint8 pictures (square, 32 pixels or more)."""
    if frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3 or frames.shape[1] < 32:
        raise ValueError(
            f"PushT pictures have the shape (N, size, size, 3) with size >= 32, got {tuple(frames.shape)}"
        )
    if frames.dtype != np.uint8:
        raise ValueError(f"pictures are uint8, got {frames.dtype}")
    limits = limits or Limits()
    # One empty picture stands for none, whose parts have shapes too.
    some = frames if len(frames) else np.zeros((1, *frames.shape[1:]), np.uint8)
    parts = [_detect(some[start : start + _CHUNK], limits) for start in range(0, len(some), _CHUNK)]
    names = [field.name for field in dataclasses.fields(Detection)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Detection(**{name: values[: len(frames)] for name, values in joined.items()})


def _detect(frames: np.ndarray, limits: Limits) -> Detection:
    size = frames.shape[1]
    pixel = UNITS / size
    agent_map, block_map = _unmix(frames)
    agent = _find_agent(frames, agent_map, pixel)
    # The agent is drawn over the block: what it covers says nothing about the block. An agent that is not
    # there covers nothing.
    free = np.broadcast_to(_shown(size), block_map.shape).copy()
    window = _Window.around(agent.centre, AGENT_RADIUS + 2 * pixel, size)
    distance = _from_centre(window, agent.centre)[0]
    is_there = (agent.area - agent.outside > 0.3)[:, None, None]
    free[window.indices] *= ~((distance < AGENT_RADIUS + 0.75 * pixel) & is_there)
    block = _find_block(frames, block_map * free, free, pixel)
    has_agent = (
        (agent.area > limits.agent_area[0])
        & (agent.area < limits.agent_area[1])
        & (agent.outside < limits.agent_outside)
        & (agent.colour < limits.agent_colour)
    )
    has_block = (
        (block.area > limits.block_area[0])
        & (block.area < limits.block_area[1])
        & (block.misfit < limits.block_misfit)
        & (block.colour < limits.block_colour)
        & (block.visible > limits.block_visible)
    )
    return Detection(
        agent=(agent.centre + DISC_CENTRE) / SCALE,
        block=block.pose[:, :2] / SCALE,
        angle=wrap_angle(block.pose[:, 2]),
        agent_area=agent.area,
        block_area=block.area,
        agent_colour=agent.colour,
        block_colour=block.colour,
        agent_outside=agent.outside,
        block_misfit=block.misfit,
        block_visible=block.visible,
        has_agent=has_agent,
        has_block=has_block,
    )


@functools.lru_cache(maxsize=8)
def _axis(size: int) -> np.ndarray:
    """Centres of the pixels in the simulator's units: pixel ``i`` of its 512 wide picture lies at ``i``."""
    return ((np.arange(size) + 0.5) * (UNITS / size) - 0.5).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _shown(size: int) -> np.ndarray:
    """``H W``: 1 where the things can be seen, 0 on the rim that the walls cover."""
    is_shown = (_axis(size) >= WALL) & (_axis(size) < UNITS - WALL)
    return (is_shown[:, None] & is_shown[None, :]).astype(np.float32)


class _Window(NamedTuple):
    """A square piece of each picture: indices ``picture`` (N 1 1), ``row`` (N k 1), ``column`` (N 1 k), and
    where the pixels lie, ``x`` (N 1 k) and ``y`` (N k 1), in the simulator's units."""

    picture: np.ndarray
    row: np.ndarray
    column: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def around(cls, centre: np.ndarray, reach: float, size: int) -> "_Window":
        """Holds everything within ``reach`` of ``centre`` (N 2) that lies in the picture. Near the rim the
        window is moved inwards, so that it never repeats a pixel."""
        width = min(size, int(np.ceil(2 * reach * size / UNITS)) + 1)
        first = np.rint((centre + 0.5) * (size / UNITS) - 0.5 - (width - 1) / 2)
        first = np.clip(np.nan_to_num(first), 0, size - width).astype(np.intp)
        column = first[:, 0, None, None] + np.arange(width)[None, None, :]
        row = first[:, 1, None, None] + np.arange(width)[None, :, None]
        axis = _axis(size)
        return cls(np.arange(len(centre))[:, None, None], row, column, axis[column], axis[row])

    @property
    def indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.picture, self.row, self.column


def _unmix(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``N H W 3`` pictures as shares of agent and of block in each pixel, each ``N H W`` in [0, 1].

    A pixel is taken for a mixture of background, agent, block and goal, which is what a soft edge is; colours
    that no mixture explains (a thing repainted) count for nothing.
    """
    # Half of the agent is outline. The block's inside stands for it: its outline is darker, so more of it.
    basis = np.stack([0.54 * AGENT + 0.46 * AGENT_OUTLINE, BLOCK, GOAL], axis=1) - BACKGROUND[:, None]
    unmix = np.linalg.inv(basis).astype(np.float32)
    basis = basis.astype(np.float32)
    red, green, blue = (frames[..., channel].astype(np.float32) - 255.0 for channel in range(3))
    agent, block, goal = (row[0] * red + row[1] * green + row[2] * blue for row in unmix)
    agent = np.clip(agent, 0.0, 1.0)
    block = np.clip(block, 0.0, 1.0 - agent)
    goal = np.clip(goal, 0.0, 1.0 - agent - block)
    residual = np.zeros_like(red)
    for seen, (of_agent, of_block, of_goal) in zip((red, green, blue), basis, strict=True):
        residual += (seen - of_agent * agent - of_block * block - of_goal * goal) ** 2
    trusted = np.clip(2.0 - residual * (1.0 / 70.0**2), 0.0, 1.0)
    # Shares under a fifth are noise, and there are thousands of pixels to sum it over.
    agent, block = (share * trusted * np.clip(5.0 * share - 1.0, 0.0, 1.0) for share in (agent, block))
    return agent, block


class _Agent(NamedTuple):
    centre: np.ndarray
    area: np.ndarray
    outside: np.ndarray
    colour: np.ndarray


def _find_agent(frames: np.ndarray, agent_map: np.ndarray, pixel: float) -> _Agent:
    num, size = agent_map.shape[:2]
    agent_map = agent_map * _shown(size)
    half = max(1, round(AGENT_RADIUS / pixel))
    dense = _box_sum(agent_map, half).reshape(num, size * size).argmax(1)
    centre = _axis(size)[np.stack([dense % size, dense // size], 1)].astype(np.float64)
    window = _Window.around(centre, 3.0 * AGENT_RADIUS, size)
    found = agent_map[window.indices]
    shown = _shown(size)[window.row, window.column]
    mass = found.sum((1, 2)) + 1e-6
    centre = np.stack([(found * window.x).sum((1, 2)) / mass, (found * window.y).sum((1, 2)) / mass], 1)
    for _ in range(4):
        distance, dx, dy = _from_centre(window, centre)
        cover = _cover(AGENT_RADIUS - distance, pixel)
        # Gauss-Newton: moving the disc along x changes the cover on its edge by dx / distance / pixel.
        edge = ((cover > 0) & (cover < 1)) * shown / (pixel * distance)
        error = (found - cover) * shown
        centre = centre + _newton([edge * dx, edge * dy], error, np.array([0.7, 0.7]) * pixel)
    distance = _from_centre(window, centre)[0]
    expected = AGENT_SHARE * (_cover(AGENT_RADIUS - distance, pixel) * shown).sum((1, 2))
    within = (found * (distance < AGENT_RADIUS + 1.25 * pixel)).sum((1, 2))
    total = agent_map.sum((1, 2))
    full = AGENT_SHARE * np.pi * AGENT_RADIUS**2 / pixel**2
    core = (distance < max(0.6 * AGENT_RADIUS, 0.75 * pixel)) * shown
    return _Agent(
        centre=centre,
        area=total / np.maximum(expected, 0.2 * full),
        outside=(total - within) / full,
        colour=_colour_distance(frames[window.indices], core, AGENT),
    )


def _from_centre(window: _Window, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance of each pixel from ``centre`` (N 2), and its two parts."""
    dx, dy = window.x - centre[:, 0, None, None], window.y - centre[:, 1, None, None]
    return np.hypot(dx, dy) + 1e-3, dx, dy


class _Block(NamedTuple):
    pose: np.ndarray
    area: np.ndarray
    misfit: np.ndarray
    colour: np.ndarray
    visible: np.ndarray


def _find_block(frames: np.ndarray, block_map: np.ndarray, free: np.ndarray, pixel: float) -> _Block:
    """Fits the T to ``block_map`` where ``free`` is 1; both ``N H W``."""
    size = block_map.shape[1]
    total = block_map.sum((1, 2))
    axis = _axis(size)
    centre = np.stack([block_map.sum(1) @ axis, block_map.sum(2) @ axis], 1) / (total[:, None] + 1e-6)
    window = _Window.around(centre, 104.0, size)
    view = _View(block_map[window.indices], free[window.indices], window.x, window.y)
    pose, error = _fit(view, _pose_from_moments(view), pixel)
    # Moments mislead where part of the block is hidden: such pictures are fitted again from all around.
    full = _shape().area / pixel**2
    again = np.flatnonzero(error > POOR_FIT * full)
    if len(again):
        pose[again] = _fit_from_around(view.take(again), pose[again], error[again], pixel)

    depth = _depth(view, pose)[0]
    cover = _cover(depth, pixel)
    expected = np.maximum((cover * view.free).sum((1, 2)), 0.05 * full)
    # Three quarters of a pixel of slack: real pictures are not antialiased, generated ones are soft.
    excess = np.maximum(view.found - _cover(depth + 0.75 * pixel, pixel) * view.free, 0.0).sum((1, 2))
    lack = np.maximum(_cover(depth - 0.75 * pixel, pixel) - view.found, 0.0) * view.free
    elsewhere = total - view.found.sum((1, 2))
    return _Block(
        pose=pose,
        area=total / expected,
        misfit=(excess + lack.sum((1, 2)) + elsewhere) / expected,
        colour=_colour_distance(frames[window.indices], (depth > 0.6 * pixel) * view.free, BLOCK),
        visible=(cover * _shown(size)[window.row, window.column]).sum((1, 2)) / full,
    )


class _View(NamedTuple):
    """Pieces of pictures to fit the T to: how much block was ``found``, where one could be (``free``)."""

    found: np.ndarray
    free: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def take(self, index: np.ndarray) -> "_View":
        return _View(*(part[index] for part in self))


def _pose_from_moments(view: _View) -> np.ndarray:
    """First guess, ``N 3``: the T is longer along its stem, and its stem is the longer tail."""
    mass = view.found.sum((1, 2)) + 1e-6
    centre_x = (view.found * view.x).sum((1, 2)) / mass
    centre_y = (view.found * view.y).sum((1, 2)) / mass
    dx, dy = view.x - centre_x[:, None, None], view.y - centre_y[:, None, None]
    found_x, found_y = view.found * dx, view.found * dy
    xx, xy, yy = (found_x * dx).sum((1, 2)), (found_x * dy).sum((1, 2)), (found_y * dy).sum((1, 2))
    bearing = 0.5 * np.arctan2(2 * xy, xx - yy)
    along = np.cos(bearing)[:, None, None] * dx + np.sin(bearing)[:, None, None] * dy
    flip = np.where((view.found * along * along * along).sum((1, 2)) < 0, -1.0, 1.0)
    stem_x, stem_y = flip * np.cos(bearing), flip * np.sin(bearing)
    offset = CENTRE_OF_MASS[1] - 285.0 / 7.0  # From the centre of the T's area, along its stem.
    return np.stack([centre_x + offset * stem_x, centre_y + offset * stem_y, np.arctan2(-stem_x, stem_y)], 1)


def _fit_from_around(view: _View, pose: np.ndarray, error: np.ndarray, pixel: float) -> np.ndarray:
    """The best of ``pose`` (N 3) and of fits that start turned all around it, and also moved outwards, where
    a block is hidden: first roughly, on every other pixel, then the best few in full."""
    num, turns, kept = len(pose), np.arange(12) * (np.pi / 6), 6
    starts = np.repeat(pose[:, None, :], 2 * len(turns), 1)
    starts[:, :, 2] += np.tile(turns, 2)
    outwards = starts[:, len(turns) :, :2] - UNITS / 2
    starts[:, len(turns) :, :2] += 36.0 * outwards / np.maximum(np.abs(outwards).max(2, keepdims=True), 1.0)
    coarse = _View(view.found[:, ::2, ::2], view.free[:, ::2, ::2], view.x[:, :, ::2], view.y[:, ::2, :])
    every = np.repeat(np.arange(num), 2 * len(turns))
    rough, errors = _fit(coarse.take(every), starts.reshape(-1, 3), pixel, (4.0, 3.0, 2.0))
    best = errors.reshape(num, -1).argsort(1)[:, :kept]
    rough = np.take_along_axis(rough.reshape(num, -1, 3), best[:, :, None], 1)
    fine, errors = _fit(view.take(np.repeat(np.arange(num), kept)), rough.reshape(-1, 3), pixel)
    poses = np.concatenate([pose[:, None], fine.reshape(num, kept, 3)], 1)
    errors = np.concatenate([error[:, None], errors.reshape(num, kept)], 1)
    return poses[np.arange(num), errors.argmin(1)]


def _fit(
    view: _View, pose: np.ndarray, pixel: float, softness: tuple[float, ...] = (3.0, 2.0, 1.5, 1.5, 1.5)
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton from ``pose`` (N 3): the pose, and its squared error over the pixels. The T's edge is soft
    over ``softness`` pixels, one step with each: a wide edge is found from afar, a narrow one precisely."""
    reach = np.array([1.5 * SCALE, 1.5 * SCALE, 0.25])
    for ramp in (width * pixel for width in softness):
        depth, slope_u, slope_v, u, v, cosine, sine = _depth(view, pose)
        cover = _cover(depth, ramp)
        edge = ((cover > 0) & (cover < 1)) * view.free / ramp
        slope_u *= edge
        slope_v *= edge
        slopes = [
            -(cosine * slope_u - sine * slope_v),
            -(sine * slope_u + cosine * slope_v),
            slope_u * v - slope_v * u,
        ]
        pose = pose + _newton(slopes, (view.found - cover) * view.free, reach)
    cover = _cover(_depth(view, pose)[0], 1.5 * pixel)
    return pose, (((view.found - cover) * view.free) ** 2).sum((1, 2))


def _cover(depth: np.ndarray, ramp: float) -> np.ndarray:
    return np.clip(depth * (1.0 / ramp) + 0.5, 0.0, 1.0)


def _depth(view: _View, pose: np.ndarray) -> tuple[np.ndarray, ...]:
    """How deep each pixel lies in the T at ``pose``, the slopes of that along the T's own axes, and the place
    of the pixel on them; then the cosine and sine of the angle."""
    x, y, angle = (pose[:, index, None, None].astype(np.float32) for index in range(3))
    cosine, sine = np.cos(angle), np.sin(angle)
    dx, dy = view.x - x, view.y - y
    u, v = cosine * dx + sine * dy, cosine * dy - sine * dx
    side = 2 * int(_REACH / _CELL) + 1
    row = np.clip(v * (1 / _CELL) + (_REACH / _CELL + 0.5), 0, side - 1).astype(np.int32)
    column = np.clip(u * (1 / _CELL) + (_REACH / _CELL + 0.5), 0, side - 1).astype(np.int32)
    place = row * side + column
    return *(np.take(table, place) for table in _shape().tables), u, v, cosine, sine


class _Shape(NamedTuple):
    tables: tuple[np.ndarray, np.ndarray, np.ndarray]
    area: float


@functools.cache
def _shape() -> _Shape:
    """The T as drawn, around its centre of mass: depth (negative outside) and slopes as flat tables, and its
    area."""
    axis = np.arange(-_REACH, _REACH + _CELL / 2, _CELL)
    u, v = axis[None, :], axis[:, None] + CENTRE_OF_MASS[1]
    depths = []
    for left, right, top, bottom in BARS:
        out_u, out_v = np.maximum(left - u, u - right), np.maximum(top - v, v - bottom)
        outside = np.hypot(np.maximum(out_u, 0), np.maximum(out_v, 0))
        depths.append(-(outside + np.minimum(np.maximum(out_u, out_v), 0)))
    depth = np.maximum(*depths) + OUTLINE
    slope_v, slope_u = np.gradient(depth, _CELL)
    tables = tuple(table.astype(np.float32).ravel() for table in (depth, slope_u, slope_v))
    return _Shape((tables[0], tables[1], tables[2]), float((depth > 0).sum() * _CELL**2))


def _newton(slopes: list[np.ndarray], error: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """One damped Gauss-Newton step, ``N D``, no longer than ``reach`` in any of its directions."""
    flat = np.stack([slope.reshape(len(error), -1) for slope in slopes], 1)
    scaled = flat * reach[None, :, None].astype(np.float32)
    hessian = (scaled @ scaled.transpose(0, 2, 1)).astype(np.float64)
    gradient = (scaled @ error.reshape(len(error), -1, 1))[:, :, 0].astype(np.float64)
    damping = 1e-2 * np.trace(hessian, axis1=1, axis2=2) / len(slopes) + 1e-3
    hessian += damping[:, None, None] * np.eye(len(slopes))
    step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
    return np.clip(step, -1.0, 1.0) * reach


def _box_sum(picture: np.ndarray, half: int) -> np.ndarray:
    """``N H W`` summed over squares of ``2 half + 1`` pixels, centred; nothing lies outside the picture."""
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (half + 1, half)
        total = np.pad(picture, pad).cumsum(axis)
        size, width = picture.shape[axis], 2 * half + 1
        picture = np.take(total, np.arange(size) + width, axis) - np.take(total, np.arange(size), axis)
    return picture


def _colour_distance(pieces: np.ndarray, weight: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Distance of the mean colour of ``N k k 3`` pictures under ``weight`` from ``colour``; infinite where
    there is no weight."""
    total = weight.sum((1, 2))
    mean = np.einsum("nyx,nyxc->nc", weight.astype(np.float32), pieces.astype(np.float32))
    distance = np.linalg.norm(mean / np.maximum(total, 1e-6)[:, None] - colour, axis=1)
    return np.where(total > 0, distance, np.inf)
