"""``kinema data``: what a dataset holds, and every defect in it, before anybody trains on it."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from kinema.data import drawing
from kinema.data.defects import Defect, find_defects
from kinema.data.dimensions import find_dimensions
from kinema.data.layout import POSITION_FEATURES, DataError, dimension_names, is_picture, picture_shape
from kinema.data.lerobot import Dataset
from kinema.types import FileError

MAX_LISTED = 10
"""Defects of one kind that are printed; all of them are in the JSON."""
MAX_DIMENSIONS = 16
"""Dimensions of one feature that are printed; all of them are in the JSON."""
SHEET_ROWS = 12
SHEET_COLUMNS = 12
SHEET_SIDE = 160
"""Pixels to which the longer side of a picture on the contact sheet is brought, by whole factors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to look at."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder of a LeRobotDataset (v3.0, v2.1 or v2.0), or its id on the Hugging Face Hub (owner/name)."""
    out: Path | None = None
    """Where to write the contact sheet; by default runs/NAME-contact-sheet.png."""
    decode: bool = True
    """Decode every frame of every video; without it only their headers are checked."""
    json: bool = False
    """Print everything as JSON."""


def inspect(config: DataConfig) -> int:
    """Print what the dataset holds and its defects, and write a contact sheet.

    Returns the exit code: 1 where there are errors, 0 where there are none or only warnings.
    """
    try:
        dataset = Dataset.open(config.path)
    except DataError as error:
        root = Path(config.path)
        defects = [Defect.of(error, root, kind="unreadable")]
        report: dict[str, Any] = {"path": str(root), "defects": [dataclasses.asdict(d) for d in defects]}
        _show(report, defects, is_json=config.json)
        return 1
    defects = find_defects(dataset.root, is_decoding=config.decode, is_showing_progress=sys.stderr.isatty())
    report = describe(dataset)
    sheet = draw_contact_sheet(dataset)
    if sheet is not None:
        out = config.out or Path("runs") / f"{dataset.root.resolve().name}-contact-sheet.png"
        try:
            drawing.write_png(out, sheet)
            report["contact_sheet"] = str(out)
        except (OSError, FileError) as error:
            report["contact_sheet_error"] = f"not written ({error}); name another place with --out"
    report["defects"] = [dataclasses.asdict(defect) for defect in defects]
    _show(report, defects, is_json=config.json)
    return int(any(defect.severity == "error" for defect in defects))


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a dataset holds, ready for JSON."""
    lengths = dataset.lengths()
    cameras = {}
    for key in dataset.cameras:
        feature = dataset.features[key]
        details = feature.get("info") or {}
        stored = " ".join(
            str(details[f"video.{name}"]) for name in ("codec", "pix_fmt") if f"video.{name}" in details
        )
        cameras[key] = {"shape": list(picture_shape(feature)), "stored": stored or feature["dtype"]}
    columns = {
        key: {name: feature.get(name) for name in ("dtype", "shape", "names")}
        for key, feature in dataset.features.items()
        if not is_picture(feature) and key not in POSITION_FEATURES
    }
    return {
        "path": str(dataset.root),
        "version": dataset.info.get("codebase_version"),
        "older_version": dataset.older_version,
        "robot_type": dataset.info.get("robot_type"),
        "episodes": dataset.num_episodes,
        "frames": dataset.num_frames,
        "fps": dataset.fps,
        "hours": dataset.num_frames / dataset.fps / 3600,
        "lengths": {
            "min": int(lengths.min()) if len(lengths) else 0,
            "median": float(np.median(lengths)) if len(lengths) else 0.0,
            "max": int(lengths.max()) if len(lengths) else 0,
        },
        "cameras": cameras,
        "columns": columns,
        "dimensions": {
            key: [dataclasses.asdict(each) for each in of_key]
            for key, of_key in find_dimensions(dataset).items()
        },
        "tasks": _count_tasks(dataset),
        "statistics": {
            key: {name: _finite(value.tolist()) for name, value in of_key.items()}
            for key, of_key in dataset.stats.items()
            if key in columns or key in cameras
        },
    }


def _finite(value: Any) -> Any:
    """Nested lists of numbers with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return value if np.isfinite(value) else None


def _count_tasks(dataset: Dataset) -> dict[str, int]:
    """Episodes of each task; tasks that no episode has are there with 0."""
    counts: Counter[str] = Counter()
    for tasks in dataset.table.tasks:
        counts.update(dict.fromkeys(tasks, 1))
    return {task: counts[task] for task in dict.fromkeys([*dataset.tasks, *counts])}


def draw_contact_sheet(dataset: Dataset) -> np.ndarray | None:
    """Pictures of episodes spread over the dataset, one row for each episode and camera; None without any."""
    if not dataset.cameras or not dataset.num_episodes:
        return None
    num_episodes = min(dataset.num_episodes, max(1, SHEET_ROWS // len(dataset.cameras)))
    rows, labels = [], []
    for index in np.linspace(0, dataset.num_episodes - 1, num_episodes).round().astype(int).tolist():
        for camera in dataset.cameras:
            try:
                pictures = dataset.pictures(index, camera)
            except DataError:
                # Listed among the defects; the sheet shows the rest.
                continue
            shrink = -(-max(pictures.shape[1:3]) // SHEET_SIDE)
            rows.append(pictures[:, ::shrink, ::shrink])
            labels.append(f"{index} {camera.rpartition('.')[2]}")
    if not rows:
        return None
    scale = max(1, SHEET_SIDE // max(max(row.shape[1:3]) for row in rows))
    return drawing.contact_sheet(rows, columns=SHEET_COLUMNS, scale=scale, labels=labels)


def _show(report: Mapping[str, Any], defects: list[Defect], *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(report, indent=2))
        return
    lines = [*(_summary_lines(report) if "episodes" in report else ()), *_defect_lines(defects)]
    # A terminal that lacks a letter is no reason to fail.
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))


def _summary_lines(report: Mapping[str, Any]) -> Iterable[str]:
    lengths = report["lengths"]
    yield f"{report['path']}: LeRobotDataset {report['version']}, robot {report['robot_type']}"
    if report["older_version"]:
        yield f"  {report['older_version']}"
    spread = f" of {lengths['min']} to {lengths['max']} rows, median {lengths['median']:g}"
    yield f"  episodes   {report['episodes']}{spread if report['episodes'] else ''}"
    yield f"  frames     {report['frames']} at {report['fps']:g} fps, {report['hours']:.2f} hours"
    for key, camera in report["cameras"].items():
        yield f"  camera     {key}  {' x '.join(map(str, camera['shape']))}, {camera['stored']}"
    for key, column in report["columns"].items():
        yield f"  column     {key}  {column['dtype']} {column['shape']}"
    tasks = list(report["tasks"].items())
    for task, count in tasks[:MAX_LISTED]:
        yield f"  task       {task or '(no text)'}  ({count} episodes)"
    if len(tasks) > MAX_LISTED:
        yield f"             and {len(tasks) - MAX_LISTED} more"
    yield from _statistics_lines(report)
    if "contact_sheet" in report:
        yield f"contact sheet: {report['contact_sheet']}"
    if "contact_sheet_error" in report:
        yield f"contact sheet: {report['contact_sheet_error']}"


def _statistics_lines(report: Mapping[str, Any]) -> Iterable[str]:
    names = ("min", "q01", "mean", "q99", "max", "std")
    keys = [key for key in report["columns"] if key in report["statistics"]]
    if not keys:
        return
    labels_of = {key: dimension_names(report["columns"][key]) for key in keys}
    labels_of = {key: [""] if labels == ["0"] else labels for key, labels in labels_of.items()}
    width = 2 + max(len(f"{key} {label}") for key, labels in labels_of.items() for label in labels)
    yield "statistics " + " " * (width - 9) + "kind      " + "".join(f"{name:>11}" for name in names)
    for key in keys:
        stats = {name: np.ravel(np.array(v, np.float64)) for name, v in report["statistics"][key].items()}
        labels = labels_of[key]
        kinds = [_kind(each) for each in report["dimensions"].get(key, ())] or [""] * len(labels)
        # Angles and choices are always shown, as they are rarer than ranges.
        shown = [n for n in range(len(labels)) if n < MAX_DIMENSIONS or kinds[n] in ("angle", "discrete")]
        for number in shown:
            cells = (f"{stats[name][number]:11.4g}" if name in stats else " " * 11 for name in names)
            yield f"  {f'{key} {labels[number]}':<{width}}{kinds[number]:<10}" + "".join(cells)
        if len(labels) > len(shown):
            yield f"  and {len(labels) - len(shown)} more dimensions of {key}"


def _kind(dimension: Mapping[str, Any]) -> str:
    """The kind in a word: a turn of an angle too, and whether a number ever changes."""
    if dimension["kind"] == "angle":
        return "angle" if dimension["high"] - dimension["low"] < 7 else "degrees"
    is_constant = dimension["kind"] == "continuous" and dimension["low"] == dimension["high"]
    return "constant" if is_constant else dimension["kind"]


def _defect_lines(defects: list[Defect]) -> Iterable[str]:
    if not defects:
        yield "no defects found"
    ranked = sorted(defects, key=lambda defect: defect.severity != "error")
    listed: Counter[str] = Counter()
    for defect in ranked:
        listed[defect.kind] += 1
        if listed[defect.kind] <= MAX_LISTED:
            yield str(defect)
    for kind, count in listed.items():
        if count > MAX_LISTED:
            yield f"and {count - MAX_LISTED} more defects of the kind {kind}; --json lists all"
    if defects:
        num_errors = sum(defect.severity == "error" for defect in defects)
        yield f"{num_errors} errors, {len(defects) - num_errors} warnings"
