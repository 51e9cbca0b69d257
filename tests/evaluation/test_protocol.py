import contextlib
import json
from pathlib import Path

import pytest
import torch

from kinema.evaluation.protocol import Journal
from kinema.model.parts import fingerprint


def test_what_was_found_is_found_again(tmp_path: Path) -> None:
    path, measured = tmp_path / "out" / "found.jsonl", []

    def measure() -> object:
        measured.append(len(measured))
        return (measured[-1], float("inf"))

    with contextlib.closing(Journal(path, {"tasks": (1, 2)})) as journal:
        assert journal.find("a", measure) == journal.find("a", measure) == [0, float("inf")]
        journal.find("b", measure)
    with path.open("a") as file:
        file.write('{"key": "c", "fou')  # As if the power had gone.
    with contextlib.closing(Journal(path, {"tasks": [1, 2]})) as journal:
        assert journal.find("b", measure) == [1, float("inf")]
        assert journal.find("c", measure) == [2, float("inf")]
    assert measured == [0, 1, 2]
    journal = Journal(path, {"tasks": [1, 2]})
    assert journal.find("c", measure) == [2, float("inf")]
    journal.close(is_finished=True)
    assert not path.exists()


def test_another_measurement_is_refused_and_nothing_lost(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    with contextlib.closing(Journal(path, {"seed": 0})) as journal:
        journal.find("a", lambda: 1)
    before = path.read_text()
    with pytest.raises(ValueError, match="choose another --out"):
        Journal(path, {"seed": 1})
    assert path.read_text() == before
    assert json.loads(before.split("\n")[1]) == {"key": "a", "found": 1}


def test_networks_are_told_apart() -> None:
    torch.manual_seed(0)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(one, None) == fingerprint(one)
    assert len({fingerprint(one), fingerprint(other), fingerprint(one, other)}) == 3
