"""The suite: many worlds, recorded, learned by one recipe with one budget, measured and drawn.

    python benchmarks/suite.py --budget 1h [--only coin screen] [--humanoid DIR] [--droid DIR]
    python benchmarks/suite.py --update-share 0.01 --only coin --data-share 0.1      # a miniature

Each world is recorded (another recording, from other seeds, is for the measurements alone), learned by
``kinema train``, measured by ``kinema evaluate skill`` and ``calibration``, and drawn as a contact sheet,
real above simulated. ``results/suite/NAME.json`` holds the numbers of a world, ``results/suite/README.md``
the table of all. All else is kept in ``--work``; what is there is not made again, and what was interrupted
goes on. Needs ``pip install 'kinema[gym,pusht,dmc,games,evaluate]'``; a world whose simulator or data is
missing is left out, and the table says why. Run it from the root of the repository.
"""

import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from kinema.data import Dataset, DatasetWriter
from kinema.data.drawing import contact_sheet, write_png
from kinema.data.files import write_text
from kinema.data.frames import join_cameras
from kinema.evaluation.result import Result, Row
from kinema.evaluation.rollout import load_segments, simulate_once
from kinema.evaluation.tables import markdown, text
from kinema.kits import Target
from kinema.kits.toys.measures import coin_sides, emergence, share_right
from kinema.simulation.world import World, load

HELD_OUT_SEED = 1_000_000
"""Seed of the first episode of recordings that no world learns from."""
STEPS = 100
"""Steps of contact sheets and of skill."""
CONTEXT = 4
"""Frames given."""
SHEET_ROWS, SHEET_COLUMNS = 3, 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """A world that is recorded here."""

    env: str
    episodes: int
    held_out: int = 32
    """Episodes for the measurements."""
    max_steps: int | None = None
    options: tuple[str, ...] = ()
    """Further options of ``kinema record``."""
    measure: Callable[[World, Dataset, int], list[Row]] | None = None
    """Further rows, from the world, the held-out recording and the number of network calls."""

    @property
    def acting(self) -> list[str]:
        """Options that decide what the environment is and how it is acted in."""
        pairs = zip(self.options[::2], self.options[1::2], strict=False)
        return [word for pair in pairs if pair[0] in ("--policy", "--env-args") for word in pair]

    def command(self, out: Path, *, is_held_out: bool, share: float) -> list[str]:
        """Return the arguments of ``kinema`` that record."""
        number = max(2, round(share * (self.held_out if is_held_out else self.episodes)))
        words = ["record", self.env, "--episodes", str(number), "--out", str(out), *self.options]
        words += [] if self.max_steps is None else ["--max-steps", str(self.max_steps)]
        return [*words, "--seed", str(HELD_OUT_SEED if is_held_out else 0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """A dataset of a real robot; its last episodes are held out."""

    held_out: int
    measure: None = None


def measure_coin(world: World, dataset: Dataset, num_futures: int) -> list[Row]:
    """Measure where the ball falls in 1,000 futures, with 1 and 4 network calls."""
    episode = dataset.episode(0, cameras=world.cameras)
    rows = []
    for calls in (1, 4):
        sides = coin_sides(
            world, episode, num_futures=num_futures, num_denoising_steps=calls, context=CONTEXT
        )
        uneven = max(abs(sides.left - 0.5), abs(sides.right - 0.5))
        # Four calls are what the targets are for.
        even, either = (
            (Target(must=0.05, aim=0.02), Target(must=0.02, aim=0.002)) if calls == 4 else (None, None)
        )
        for key, what, value, target in (
            ("right", "to the right", sides.right, None),
            ("uneven", "how far one side is from one half", uneven, even),
            ("neither", "on neither side", sides.neither, either),
        ):
            row = Row(
                key=f"coin/{key}/{calls}", what=f"coin, {calls} calls: {what}", value=value, unit="share"
            )
            rows.append(row.with_target(target))
    return rows


def measure_screen(world: World, dataset: Dataset, num_futures: int) -> list[Row]:
    """Measure whether balls come out from behind the screen where and when they should, as the right kind."""
    episodes = (dataset.episode(index, cameras=world.cameras) for index in range(dataset.num_episodes))
    balls = [ball for episode in episodes if (ball := emergence(world, episode)) is not None]
    rng = np.random.default_rng(0)
    rows = []
    for fewest, most in ((5, 19), (20, 40), (41, 61)):
        right = share_right(balls, fewest, most)
        if len(right):
            what = f"screen: right after {fewest} to {most} hidden frames ({len(right)} balls)"
            row = Row.measure(
                f"screen/{fewest}-{most}", what, "share", lambda x: float(np.mean(x)), right,
                rng=rng, is_higher_better=True, target=Target(must=0.9, aim=0.99) if fewest == 20 else None,
            )  # fmt: skip
            rows.append(row)
    kind = np.array([float(ball.has_right_kind) for ball in balls])
    if len(kind):
        what = "screen: the right kind came out, anywhere"
        rows.append(
            Row(key="screen/kind", what=what, value=float(kind.mean()), unit="share", is_higher_better=True)
        )
    return rows


CONTROL_20_HZ = ("--env-args", '{"environment_kwargs": {"control_timestep": 0.05}}')
WORLDS: Mapping[str, Recorded | Given] = {
    "coin": Recorded(
        env="kinema_coin/Pixels-v0", episodes=200, options=("--info-keys", "coin"), measure=measure_coin
    ),
    "coin-vector": Recorded(
        env="kinema_coin/Vector-v0", episodes=200, options=("--info-keys", "coin"), measure=measure_coin
    ),
    "screen": Recorded(
        env="kinema_screen/Pixels-v0",
        episodes=300,
        held_out=64,
        options=("--info-keys", "screen"),
        measure=measure_screen,
    ),
    "pusht": Recorded(
        env="gym_pusht/PushT-v0",
        episodes=300,
        max_steps=150,
        options=("--policy", "pusht-play", "--info-keys", "pos_agent,block_pose"),
    ),
    "pusht-moods": Recorded(
        env="benchmarks.worlds:kinema_suite/PushTMoods-v0",
        episodes=300,
        max_steps=150,
        options=("--policy", "pusht-play"),
    ),
    "cartpole": Recorded(
        env="dm_control/cartpole-swingup-v0",
        episodes=150,
        max_steps=150,
        options=("--policy", "cartpole-swing", *CONTROL_20_HZ),
    ),
    "reacher": Recorded(env="dm_control/reacher-easy-v0", episodes=120, max_steps=150),
    "racing": Recorded(
        env="benchmarks.worlds:kinema_suite/CarRacing-v0",
        episodes=60,
        held_out=16,
        max_steps=400,
        options=("--policy", "benchmarks.worlds:Driver", "--camera-size", "64"),
    ),
    "breakout": Recorded(
        env="ale_py:ALE/Breakout-v5",
        episodes=80,
        held_out=16,
        max_steps=400,
        options=("--policy", "benchmarks.worlds:Batter", "--camera-size", "104", "80"),
    ),
    "humanoid": Given(held_out=8),
    "droid": Given(held_out=4),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    budget: str | None = None
    """Time for the training of each world, such as 10m or 1h."""
    recipe: str = "base"
    """Recipe, where no budget is given."""
    update_share: float = 1.0
    """Share of the recipe's updates, for miniatures."""
    data_share: float = 1.0
    """Share of the episodes to record, for miniatures."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Worlds to run; by default all."""
    humanoid: Path | None = None
    """Folder of the recordings of a humanoid (LeRobot), whose last 8 episodes are held out."""
    droid: Path | None = None
    """Folder of recordings of DROID (LeRobot), whose last 4 episodes are held out."""
    rollouts: int = 32
    """Segments of held-out episodes to start from."""
    long_steps: int = 1000
    """Steps after which frames shall still be valid; 0 leaves that out."""
    num_futures: int = 1000
    """Futures of the coin."""
    device: str = "auto"
    """Device to compute on."""
    work: Path = Path("runs/suite")
    """Folder for recordings, worlds, sheets and pages."""
    out: Path = Path("results/suite")
    """Folder for the numbers and the table."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in WORLDS]
        if unknown:
            raise ValueError(f"--only {' '.join(unknown)}: choose of {', '.join(WORLDS)}")

    @property
    def training(self) -> list[str]:
        """Options of ``kinema train`` that decide how long it learns."""
        if self.budget is not None:
            return ["--budget", self.budget]
        return ["--recipe", self.recipe, "--update-share", str(self.update_share)]


class LeftOut(Exception):
    """A world cannot be run here; the message says why."""


def main(config: SuiteConfig) -> int:
    """Run the worlds, one after the other; 0 when all were run or left out for want of data, else 1."""
    reasons: dict[str, str] = {}
    num_failed = 0
    for name in config.only or WORLDS:
        print(f"\n== {name}", flush=True)
        try:
            result = run(name, WORLDS[name], config)
        except LeftOut as reason:
            reasons[name] = str(reason)
            print(f"left out: {reason}", flush=True)
        except subprocess.CalledProcessError as error:
            # The command has said what was wrong; the other worlds go on.
            reasons[name] = f"`{shlex.join(error.cmd[2:])}` ended with {error.returncode}"
            num_failed += 1
        else:
            write_text(config.out / f"{name}.json", result.to_json())
        write_text(config.out / "README.md", table(config.out, reasons))
    print(f"\n{table(config.out, reasons)}")
    return int(num_failed > 0)


def run(name: str, world: Recorded | Given, config: SuiteConfig) -> Result:
    """Record, learn and measure one world; parts that exist are not made again.

    Raises:
        LeftOut: its data is not here.
        CalledProcessError: a command failed.
    """
    folder = config.work / name
    learned, held_out = recordings(name, world, config, folder)
    started = time.monotonic()
    kinema("train", str(learned), "--out", str(folder / "world"), "--device", config.device, *config.training)
    seconds = time.monotonic() - started
    length = min(STEPS, int(np.sort(Dataset.open(held_out).lengths())[-2:].min()) - CONTEXT)
    parts = [
        evaluate("skill", folder, held_out, config, "--steps", str(length)),
        evaluate("calibration", folder, held_out, config, "--steps", str(min(50, length))),
    ]
    if isinstance(world, Recorded) and config.long_steps and Dataset.open(learned).cameras:
        parts += evaluate_live(world, folder, learned, config)
    loaded, dataset = load(folder / "world", device=config.device), Dataset.open(held_out)
    draw_sheet(loaded, dataset, length, folder / "sheet.png")
    rows = [row for part in parts for row in part.rows]
    if world.measure is not None:
        rows += world.measure(loaded, dataset, config.num_futures)
    return dataclasses.replace(
        parts[0],
        name=name,
        rows=rows,
        series=[series for part in parts for series in part.series if not series.key.startswith("ranks/")],
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        protocol={
            **parts[0].protocol,
            "training": shlex.join(config.training),
            "seconds": remember(folder, seconds),
        },
    )


def recordings(name: str, world: Recorded | Given, config: SuiteConfig, folder: Path) -> tuple[Path, Path]:
    """Record a world, or split the dataset that was given; returns what is learned from and what is not."""
    learned, held_out = folder / "data", folder / "held-out"
    if isinstance(world, Recorded):
        for out in (learned, held_out):
            kinema(*world.command(out, is_held_out=out is held_out, share=config.data_share))
        return learned, held_out
    source: Path | None = getattr(config, name)
    if source is None or not source.is_dir():
        raise LeftOut(f"no recordings: give their folder as --{name}" + (f", not {source}" if source else ""))
    dataset = Dataset.open(source)
    first = dataset.num_episodes - world.held_out
    copy(dataset, range(max(1, round(config.data_share * first))), learned)
    copy(dataset, range(first, dataset.num_episodes), held_out)
    return learned, held_out


def copy(dataset: Dataset, episodes: Sequence[int], out: Path) -> None:
    """Copy episodes into a dataset of their own, from where an interrupted copy ended."""
    with DatasetWriter(out, fps=dataset.fps) as writer:
        for index in episodes[writer.num_episodes :]:
            episode = dataset.episode(index)
            columns = {
                key: values
                for key, values in episode.columns.items()
                if key not in ("timestamp", "frame_index", "episode_index", "index", "task_index")
            }
            writer.add(frames=episode.frames, columns=columns, task=episode.task or "")


def evaluate(name: str, folder: Path, held_out: Path, config: SuiteConfig, *options: str) -> Result:
    """Run ``kinema evaluate`` where its result is missing or older than the world, and read it."""
    path = folder / "evaluation" / f"{name}.json"
    newest = max(file.stat().st_mtime for file in (folder / "world").glob("*.safetensors"))
    if not path.is_file() or path.stat().st_mtime < newest:
        words = ["evaluate", name, str(folder / "world"), "--data", str(held_out), "--out", str(path.parent)]
        rollouts = config.rollouts if name != "horizon" else max(2, config.rollouts // 4)
        words += ["--context", str(CONTEXT), "--rollouts", str(rollouts), "--device", config.device]
        kinema(*words, *options)
    return Result.from_json(json.loads(path.read_text(encoding="utf-8")))


def evaluate_live(world: Recorded, folder: Path, learned: Path, config: SuiteConfig) -> list[Result]:
    """Measure the share of valid frames beside the live environment, where nothing limits the steps; without
    it the other numbers still count."""
    options = ["--env", world.env, *world.acting, "--steps", str(config.long_steps)]
    try:
        return [
            evaluate("horizon", folder, learned, config, *options, "--seeds", "1", "--floor-restarts", "0")
        ]
    except subprocess.CalledProcessError:
        print("validity was not measured; see above", flush=True)
        return []


def draw_sheet(world: World, dataset: Dataset, num_steps: int, path: Path) -> None:
    """Draw simulated frames below real ones."""
    if not world.cameras:
        return
    segments = load_segments(world, dataset, num=SHEET_ROWS, length=CONTEXT + num_steps, probe=None)
    actions = np.stack([segment.actions[CONTEXT - 1 :][:num_steps] for segment in segments])
    simulated = simulate_once(world, segments, actions, context=CONTEXT, seeds=(0,), label="contact sheet")
    rows, labels = [], []
    for real, shown in zip(segments, simulated, strict=True):
        rows += [join_cameras([frames[CONTEXT:] for frames in real.frames.values()])]
        rows += [join_cameras(list(shown.frames.values()))]
        labels += [f"real {real.episode}", "simulated"]
    # The first steps matter as much as the late ones.
    places = np.unique(np.geomspace(1, num_steps, SHEET_COLUMNS).round().astype(int)) - 1
    write_png(path, contact_sheet(rows, labels=labels, indices=places.tolist(), scale=1))


def remember(folder: Path, seconds: float) -> float:
    """Add the seconds of a training to those of its earlier, interrupted calls, and return the sum."""
    path = folder / "seconds.json"
    before = json.loads(path.read_text()) if path.is_file() else 0.0
    # A finished training is loaded, found to be finished, and left.
    total = before if before and seconds < 60.0 else before + seconds
    write_text(path, json.dumps(total))
    return round(total, 1)


def kinema(*words: str) -> None:
    """Run a command of kinema. Raises CalledProcessError."""
    print(f"$ kinema {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "kinema", *words], check=True)


COLUMNS = {
    "skill 1": "skill/{modality}/1",
    "10": "skill/{modality}/10",
    "50": "skill/{modality}/50",
    "100": "skill/{modality}/100",
    "codec dB": "codec/psnr",
    "moving": "codec/psnr/moving",
    "obeys, x": "obey/{modality}",
    "horizon": "horizon/{modality}",
    "valid at 1,000": "valid/1000",
    "spread/error 1": "spread/{modality}/1",
    "10 ": "spread/{modality}/10",
    "50 ": "spread/{modality}/50",
}
"""Columns of the table by their heads: keys of rows."""


def table(folder: Path, reasons: Mapping[str, str]) -> str:
    """Return the table of all results in a folder, and why worlds were left out, as Markdown."""
    results = {
        path.stem: Result.from_json(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))
    }
    lines = [["world", *COLUMNS]]
    values: dict[str, list[float]] = {}
    for name in (name for name in WORLDS if name in results):
        rows = {row.key: row for row in results[name].rows}
        modality = "frame" if "skill/frame/1" in rows else "state"
        cells = [name]
        for key in COLUMNS.values():
            row = rows.get(key.format(modality=modality))
            cells.append("" if row is None else text(row.value, row.unit))
            if row is not None and isinstance(WORLDS[name], Recorded):
                values.setdefault(key, []).append(row.value)
        lines.append(cells)
    for what, pick in (("median, simulated", statistics.median), ("worst, simulated", min)):
        cells = [what]
        for key in COLUMNS.values():
            known = (
                values.get(key, []) if what.startswith("median") or key.startswith(("skill", "obey")) else []
            )
            cells.append(text(pick(known), "") if known else "")
        lines.append(cells)
    own = [
        f"- {name}: {row.what} {text(row.value, row.unit)}{' %' if row.unit == 'share' else ''}"
        f"{f' ({row.verdict})' if row.verdict else ''}"
        for name, result in results.items()
        for row in result.rows
        if row.key.startswith(("coin/", "screen/"))
    ]
    protocols = [
        f"- {name}: `{result.protocol.get('training')}`, {result.protocol.get('seconds', 0) / 60:.0f} minutes"
        for name, result in results.items()
    ]
    left_out = [f"- {name}: {reason}" for name, reason in reasons.items()]
    parts = ["# The suite", "Made by `python benchmarks/suite.py`; see there.", markdown(lines)]
    parts += ["\n".join(part) for part in (own, ["Trained by:", "", *protocols]) if part]
    parts += ["\n".join(["Left out:", "", *left_out])] if left_out else []
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(SuiteConfig, description=__doc__)))
