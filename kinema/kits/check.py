"""The contract of a kit, for the tests of whoever writes one."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kinema.kits.kit import Kit
from kinema.kits.probe import Probe, Reading, errors
from kinema.kits.simulator import Simulator, Success, Twin
from kinema.types import Episode, KinemaError

NUM_ROWS = 20
"""Rows of an episode that are looked at."""
AGREEMENT = 0.05
"""Median error of a reading of frames against the recorded state, as a share of the largest error."""
REPLAY = 0.01
"""Median error of one step of the simulator against the recorded state, as a share of the largest error."""


class KitError(KinemaError):
    """A kit breaks the contract; the message says which part and how."""


def check_kit(kit: Kit, episode: Episode, cameras: tuple[str, ...] | None = None) -> None:
    """Check every part that a kit has, against a recorded episode of its world.

    What needs the simulator is left out where that is not installed.

    Args:
        kit: the kit.
        episode: one of the world, of two rows or more, with frames and, for a kit with a simulator, the
            columns that hold the state.
        cameras: the world's cameras; by default those of the episode.

    Raises:
        KitError: a part breaks its contract.
    """
    _require(bool(kit.name) and kit.matches(kit.name), f"name: {kit.name!r} is not matched by the kit itself")
    _require(not kit.matches(f"not {kit.name}"), "matches: it takes any world")
    _check_environments(kit)
    rows = slice(0, min(NUM_ROWS, len(episode)))
    cameras = tuple(episode.frames) if cameras is None else cameras
    probe = kit.find_probe(cameras)
    _require(kit.probe is None or probe is not None, f"probe: there is none for the cameras {cameras}")
    if probe is not None:
        _check_probe(probe, episode, rows)
    for name, goal in kit.named_goals.items():
        known = [] if probe is None else [quantity.key for quantity in probe.quantities]
        missing = [key for key in goal if key not in known]
        _require(not missing, f"named_goals: {name!r} has {missing}, which the probe does not read: {known}")
    _require(
        kit.success is None or kit.simulator is not None, "success: it judges states, which need a simulator"
    )
    if kit.simulator is not None and kit.simulator.is_installed:
        _check_simulator(kit.simulator, kit.success, probe, episode, rows)


def _require(is_kept: bool, message: str) -> None:
    if not is_kept:
        raise KitError(message)


def _check_environments(kit: Kit) -> None:
    made = kit.environments
    if made is None:
        return
    _require("/" not in made.namespace, f"environments: the namespace {made.namespace!r} holds a slash")
    given: dict[str, Any] = {"an_argument": 1}
    filled, size = made.arguments(given, (48, 32))
    _require(given == {"an_argument": 1}, "environments: arguments changes what it is given")
    _require(filled.get("an_argument") == 1, "environments: arguments loses what it is given")
    _require(size == (48, 32), f"environments: arguments brings frames of 48x32 to {size}")


def _check_probe(probe: Probe, episode: Episode, rows: slice) -> None:
    _require(isinstance(probe, Probe), f"probe: {type(probe).__name__} lacks a part of kinema.kits.Probe")
    frames = {key: values[rows] for key, values in episode.frames.items()}
    seen = probe.read(frames)
    num = rows.stop
    for key, array in _parts(seen):
        _require(len(array) == num, f"probe: {key} of {num} frames has the length {len(array)}")
    for quantity in probe.quantities:
        values = seen.values.get(quantity.key)
        _require(
            values is not None and values.ndim == 2, f"probe: no values N D of the quantity {quantity.key!r}"
        )
    alone = probe.read({key: values[-1:] for key, values in frames.items()})
    for (key, many), (_, one) in zip(_parts(seen), _parts(alone), strict=True):
        is_same = np.allclose(many[-1], one[0], equal_nan=True)
        _require(is_same, f"probe: {key} of a frame depends on the frames that are read with it")
    _require(len(probe.read({key: values[:0] for key, values in frames.items()})) == 0, "probe: no frame")
    recorded = probe.recorded(episode)
    if recorded is not None:
        _compare(probe, seen, recorded[rows], AGREEMENT, "probe: frames and the recorded state disagree in")


def _parts(reading: Reading) -> Iterator[tuple[str, np.ndarray]]:
    for name in ("values", "is_found", "is_certain"):
        for key, array in sorted(getattr(reading, name).items()):
            yield f"{name}[{key!r}]", array
    yield "is_valid", reading.is_valid


def _compare(probe: Probe, reading: Reading, reference: Reading, most: float, message: str) -> None:
    for quantity in probe.quantities:
        error = errors(quantity, reading, reference)
        if np.isfinite(error).any():
            share = float(np.nanmedian(error)) / quantity.largest
            _require(
                share <= most, f"{message} {quantity.key!r}: {share:.0%} of its largest error, not {most:.0%}"
            )


def _check_simulator(
    simulator: Simulator, success: Success | None, probe: Probe | None, episode: Episode, rows: slice
) -> None:
    missing = [key for key in simulator.columns if key not in episode.columns]
    _require(not missing, f"simulator: the episode lacks the columns {missing}")
    env = _make(simulator)
    try:
        env.reset(seed=0)
        twin = simulator.wrap(env)
        _require(isinstance(twin, Twin), f"simulator: {type(twin).__name__} lacks a part of kinema.kits.Twin")
        columns = {key: episode.columns[key][rows] for key in (*simulator.columns, "action")}
        states = twin.recorded_states(columns)
        size = len(twin.get_state())
        _require(
            states.shape == (rows.stop, size),
            f"simulator: states of {rows.stop} rows have the shape {states.shape}, get_state {size} numbers",
        )
        _check_twin(twin, states, columns["action"])
        _check_replay(simulator, twin, probe, episode, states, columns)
        _require(
            env.observation_space.contains(twin.observation()),
            "simulator: observation is none of the environment's observation_space",
        )
    finally:
        env.close()
    if success is not None:
        _check_success(success, states)


def _make(simulator: Simulator) -> Any:
    import gymnasium

    importlib.import_module(simulator.module)
    return gymnasium.make(
        simulator.env, disable_env_checker=True, max_episode_steps=-1, **simulator.blind_arguments
    )


def _check_twin(twin: Twin, states: np.ndarray, actions: np.ndarray) -> None:
    ends = []
    for _ in range(2):
        twin.set_state(states[0])
        _require(
            np.allclose(twin.get_state(), states[0]), "simulator: get_state is not what set_state was given"
        )
        for action in actions:
            twin.advance(action)
        ends.append(twin.get_state())
    _require(
        np.array_equal(*ends),
        "simulator: states lack a part: the same state and actions lead elsewhere",
    )
    _require(not np.allclose(ends[0], states[0]), "simulator: advance changes nothing")
    moved = []
    for size in (0.0, 1.0, 1.0):
        twin.set_state(states[0])
        twin.perturb(np.random.default_rng(0), size)
        moved.append(twin.get_state())
    _require(np.allclose(moved[0], states[0]), "simulator: perturb by 0 moves something")
    _require(not np.allclose(moved[1], states[0]), "simulator: perturb moves nothing")
    _require(np.array_equal(moved[1], moved[2]), "simulator: perturb draws from another generator")


def _check_replay(
    simulator: Simulator,
    twin: Twin,
    probe: Probe | None,
    episode: Episode,
    states: np.ndarray,
    columns: dict[str, np.ndarray],
) -> None:
    """From a recorded state, the recorded action leads to the next recorded state."""
    reached: dict[str, list[np.ndarray]] = {key: [] for key in simulator.columns}
    for state, action in zip(states[:-1], columns["action"][:-1], strict=True):
        twin.set_state(state)
        twin.advance(action)
        row = twin.columns()
        _require(
            set(row) == set(simulator.columns),
            f"simulator: columns has {list(row)}, not {simulator.columns}",
        )
        for key, value in row.items():
            reached[key].append(np.asarray(value))
    replayed = {key: np.stack(values) for key, values in reached.items()}
    for key, values in replayed.items():
        shape = columns[key][1:].shape
        _require(
            values.shape == shape, f"simulator: rows of {key!r} have the shape {values.shape}, not {shape}"
        )
    if probe is None:
        return
    replayed["action"] = columns["action"][:-1]
    readings = [
        probe.recorded(Episode(index=0, fps=episode.fps, task=None, frames={}, columns=each))
        for each in (replayed, {key: values[1:] for key, values in columns.items()})
    ]
    _require(None not in readings, "simulator: the probe reads no state from the simulator's columns")
    reading, reference = readings
    if reading is not None and reference is not None:
        _compare(probe, reading, reference, REPLAY, "simulator: a step does not lead to the recorded")


def _check_success(success: Success, states: np.ndarray) -> None:
    goal = states[-1]
    is_met, distance = success.is_met(states, goal), success.distance(states, goal)
    _require(is_met.shape == distance.shape == states.shape[:1], "success: not one answer for each state")
    _require(bool(is_met[-1]), "success: a goal that was reached is not met")
    _require(abs(float(distance[-1])) < 1e-9, "success: a goal that was reached is at a distance")
    _require(bool((distance >= 0).all()), "success: there are negative distances")
