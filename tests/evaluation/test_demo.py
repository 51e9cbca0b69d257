import re
from pathlib import Path

import av
import pytest
from PIL import Image

from kinema.evaluation import demo


def test_demo_writes_film_sheet_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.demo(demo.DemoConfig(out=tmp_path / "new", steps=12))
    with av.open(str(tmp_path / "new" / "pusht.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    with Image.open(tmp_path / "new" / "pusht.png") as sheet:
        # Steps 0, 5 and 10, each 64 pixels twice as large.
        assert 3 * 128 < sheet.width < 5 * 128
    printed = capsys.readouterr().out
    assert "Valid: exactly one agent and one block" in printed
    assert "12 steps that the world was not trained on" in printed
    number = r"(?:\d+\.\d|-)"
    for step in (10, 12):
        assert re.search(rf"^{step}(?: +{number} \({number}\)){{3}} +\d+\.\d%$", printed, re.M), printed
    assert str(tmp_path / "new" / "pusht.mp4") in printed
    assert "kinema train DATA --out world && kinema simulate world" in printed


def test_a_missing_recording_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RECORDING", tmp_path / "recording")
    with pytest.raises(FileNotFoundError, match="recording: the bundled recording is missing; install"):
        demo.demo(demo.DemoConfig(out=tmp_path))
