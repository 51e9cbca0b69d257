"""Tables of results in documents: made from files, and old ones are noticed."""

from pathlib import Path

import pytest

from kinema.evaluation import tables
from kinema.evaluation.result import Result, Row, Series

DOCUMENT = """# Results

<!-- table results/horizon-*.json valid -->
old
<!-- /table -->

After.
"""


def result(value: float = 0.5, name: str = "horizon") -> Result:
    row = Row(key="valid", what="valid | frames", value=value, unit="share", low=0.25, high=0.75)
    other = Row(key="size", what="size", value=3.0, unit="MB", must=5.0, aim=1.0)
    nan = float("nan")
    series = Series(
        key="s",
        what="one",
        unit="px",
        panel="error",
        at=[1, 10],
        value=[1.0, nan],
        low=[1.0, nan],
        high=[2.0, nan],
    )
    return Result(
        name=name,
        world="pusht",
        data="data",
        axis="step",
        protocol={"seed": 0},
        rows=[row, other],
        series=[series],
        notes=["a note"],
        run={"command": "kinema evaluate horizon pusht"},
    )


def write(folder: Path, *values: float) -> Path:
    (folder / "results").mkdir()
    for seed, value in enumerate(values):
        (folder / "results" / f"horizon-{seed}.json").write_text(result(value).to_json())
    path = folder / "results.md"
    path.write_text(DOCUMENT)
    return path


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(result(float("nan")).to_json())
    back = tables.read(tmp_path / "a.json")
    assert back.to_json() == result(float("nan")).to_json()
    assert back.table() == result(float("nan")).table()


def test_a_marked_table_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, 0.5)
    assert tables.main(["--check", str(path)]) == 1
    assert "a table is old" in capsys.readouterr().err
    assert path.read_text() == DOCUMENT
    assert tables.main([str(path)]) == 0
    lines = path.read_text().splitlines()
    assert lines[3:6] == [
        "|  | value | interval |",
        "|---|---:|---:|",
        "| valid \\| frames | 50.00 % | 25.00 to 75.00 |",
    ]
    assert [lines[0], *lines[-3:]] == ["# Results", "<!-- /table -->", "", "After."]
    assert tables.main(["--check", str(path)]) == 0


def test_several_seeds_give_their_mean_and_range(tmp_path: Path) -> None:
    path = write(tmp_path, 0.2, 0.3, 0.7)
    assert "| valid \\| frames | 40.00 % | 20.00 to 70.00 |" in tables.render(path)


def test_a_result_is_printed_as_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 0.5)
    assert tables.main([str(tmp_path / "results" / "horizon-0.json")]) == 0
    printed = capsys.readouterr().out
    assert "| size | 3.00 MB |  | 5.00 | 1.00 | must |" in printed
    assert "| error, px | 1 | 10 |" in printed
    assert "| one | 1.00 | - |" in printed


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("results/none.json", "no file results/none.json"),
        ("results/horizon-0.json nothing", "has no row nothing"),
        ("results.md", "results.md: is no result"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mark: str, message: str
) -> None:
    path = write(tmp_path, 0.5)
    before = DOCUMENT.replace("results/horizon-*.json valid", mark)
    path.write_text(before)
    assert tables.main([str(path)]) == 2
    assert message in capsys.readouterr().err
    assert path.read_text() == before


def test_the_tables_of_this_repository_are_not_old() -> None:
    root = Path(__file__).parents[2]
    documents = [path for path in [root / "README.md", *(root / "docs").rglob("*.md")] if path.is_file()]
    assert documents
    assert tables.main(["--check", *map(str, documents)]) == 0
