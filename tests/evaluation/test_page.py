"""The page of an evaluation: complete, self-contained, and what is in it is text."""

import base64
import io
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from kinema.evaluation.plot import DARK, LIGHT
from kinema.evaluation.result import Result, Row, Series

EVIL = "<script src='https://evil.example/x.js'></script>&\"'"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def result(text: str = "block position") -> Result:
    row = Row(key="a", what=text, value=1.5, unit="px", low=1.0, high=2.0, must=3.0, aim=1.0)
    values = [1.0, 2.0, float("nan")]
    series = Series(
        key="s", what=text, unit="px", panel=text, at=[1, 10, 100], value=values, low=values, high=values
    )
    return Result(
        name="horizon",
        world=text,
        data=text,
        axis="step",
        protocol={"setting": text, "number": float("inf")},
        rows=[row],
        series=[series],
        notes=[text],
    )


class Reader(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_the_page_holds_all_and_asks_nobody(tmp_path: Path) -> None:
    def mark(theme: Any) -> np.ndarray:
        return np.full((3, 5, 3), ImageColor.getrgb(theme.background), np.uint8)

    paths = result().write(tmp_path, {"scatter": mark})
    names = ["horizon.json", "horizon.png", "horizon-scatter.png", "horizon.html"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    page = read(paths[-1])
    for text in ("block position", "1.00 to 2.00", "1.50 px", "must", '"setting": "block position"'):
        assert text in page.text
    links = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "srcset", "href") and value is not None
    ]
    assert len(links) == 4
    pictures = []
    for link in links:
        assert link.startswith("data:image/png;base64,")
        data = base64.b64decode(link.partition(",")[2])
        pictures.append(np.asarray(Image.open(io.BytesIO(data))))
    # Each plot for dark and for light readers.
    assert [tuple(picture[0, 0]) for picture in pictures] == [
        ImageColor.getrgb(theme.background) for theme in (DARK, LIGHT)
    ] * 2
    assert (pictures[0] == np.asarray(Image.open(tmp_path / "horizon.png"))).all()
    assert not re.search(r"https?:|url\(|@import", paths[-1].read_text(encoding="utf-8"))


def test_what_is_told_is_never_markup(tmp_path: Path) -> None:
    plain, evil = read(result().write(tmp_path / "a")[-1]), read(result(EVIL).write(tmp_path / "b")[-1])
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in evil.tags]
    assert evil.text.count(EVIL) >= 4


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package is chromium)")
def test_a_browser_shows_it_in_both_schemes_without_a_request(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = result().write(tmp_path)[-1]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, theme in (("light", LIGHT), ("dark", DARK)):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 800})
            asked: list[str] = []
            problems: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda message, problems=problems: problems.append(message.text))
            page.goto(path.as_uri())
            assert page.evaluate("document.querySelector('img').naturalWidth") == 1440
            corner = """() => { const image = document.querySelector('img');
                const canvas = document.createElement('canvas'); const context = canvas.getContext('2d');
                context.drawImage(image, 0, 0); return [...context.getImageData(1, 1, 1, 1).data]; }"""
            assert tuple(page.evaluate(corner)[:3]) == ImageColor.getrgb(theme.background)
            # Nothing is wider than a phone.
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
            assert not problems
            page.close()
        browser.close()
