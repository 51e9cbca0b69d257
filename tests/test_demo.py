import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kinema import demo
from kinema.evaluation import pusht


def errors(agent: list[float]) -> demo.Errors:
    values = np.array(agent)
    return demo.Errors(agent=values, block=values + 1, angle=values + 2)


def test_demo_writes_film_sheet_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.demo(demo.DemoConfig(out=tmp_path, steps=12))
    with av.open(str(tmp_path / "pusht.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    with Image.open(tmp_path / "pusht.png") as sheet:
        assert sheet.width > 4 * 128
    printed = capsys.readouterr().out
    assert re.search(r"^ +10 +\d+\.\d .*%$", printed, re.M)
    assert re.search(r"^ +12 .*%$", printed, re.M)
    assert str(tmp_path / "pusht.mp4") in printed
    assert "kinema train DATA --out world && kinema simulate world" in printed


def test_more_context_than_was_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="context is 100000, but the recording has only"):
        demo.demo(demo.DemoConfig(out=tmp_path, context=100_000))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        demo.DemoConfig(steps=0)


def test_table_has_a_row_for_each_mark_and_the_last_step() -> None:
    agent = np.arange(1.0, 61.0)
    agent[59] = np.nan
    is_valid = np.arange(60) < 30
    lines = demo.table(errors(list(agent)), errors([9.0] * 60), is_valid).splitlines()[2:5]
    assert lines[0].split() == ["10", "10.0", "11.0", "12.0°", "9.0", "10.0", "11.0°", "100.0%"]
    assert lines[1].split() == ["50", "50.0", "51.0", "52.0°", "9.0", "10.0", "11.0°", "60.0%"]
    assert lines[2].split() == ["60", "-", "-", "-", "9.0", "10.0", "11.0°", "50.0%"]


def test_compare_is_zero_against_itself_and_nan_where_nothing_is_found() -> None:
    empty = np.full((1, 64, 64, 3), 255, np.uint8)
    drawn = empty.copy()
    y, x = np.mgrid[:64, :64]
    drawn[0][(x - 20) ** 2 + (y - 40) ** 2 < 1.9**2] = pusht.AGENT
    drawn[0, 10:14, 30:45] = pusht.BLOCK
    drawn[0, 14:25, 36:40] = pusht.BLOCK
    found = pusht.detect(drawn)
    assert found.has_agent.all()
    assert found.has_block.all()
    same = demo.compare(found, found)
    assert same.agent[0] == same.block[0] == same.angle[0] == 0.0
    none = demo.compare(found, pusht.detect(empty))
    assert np.isnan([none.agent[0], none.block[0], none.angle[0]]).all()
