"""The page in a real browser, headless: what a person does with it."""

import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import PIL.Image
import pytest

from kinema.kits.pusht.detect import detect
from kinema.serve.limits import Limits
from kinema.serve.recordings import find_recordings
from kinema.serve.service import Service
from kinema.simulation.world import load

from .running import running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 120_000
"""Milliseconds to wait for the page on a machine that is busy."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package is chromium)")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    world = load("pusht")
    with running(Service(world, find_recordings("pusht", None), Limits(idle_minutes=60))) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page, waits for its first step, and pauses; an error in the page fails the test."""
    pages, problems = [], []

    def open_it(**options: Any) -> Any:
        page = browser.new_page(**options)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        pages.append(page)
        page.goto(address)
        page.wait_for_selector("body[data-steps]")
        pause(page)
        return page

    yield open_it
    for page in pages:
        page.close()
    assert problems == []


def pause(page: Any) -> None:
    if page.get_attribute("#play", "aria-pressed") == "true":
        page.click("#play")
    page.wait_for_selector("#stage[aria-busy=false]")


def steps(page: Any, branch: str = "A") -> int:
    return int(page.inner_text(f"[data-name={branch}] .simulated figcaption").split()[-1])


def wait_until(page: Any, is_so: Callable[[], bool]) -> None:
    for _ in range(PATIENCE // 100):
        if is_so():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"waited in vain; the page says: {page.inner_text('#status')}")


def picture(page: Any, branch: str = "A", kind: str = "simulated") -> np.ndarray:
    """What the canvas shows, ``H W 3``."""
    script = "c => c.toDataURL('image/png').split(',')[1]"
    text = page.eval_on_selector(f"[data-name={branch}] .{kind} canvas", script)
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def agent(page: Any) -> np.ndarray:
    """Where the agent is, as shares of the picture."""
    return detect(picture(page)[None]).agent[0] / 64.0


def point(page: Any, x: float, y: float, *, touch: bool = False) -> None:
    box = page.locator("[data-name=A] .simulated canvas").bounding_box()
    (page.touchscreen.tap if touch else page.mouse.move)(
        box["x"] + x * box["width"], box["y"] + y * box["height"]
    )


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger on a phone"])
def test_the_agent_follows_the_pointer(open_page: Callable[..., Any], touch: bool) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = open_page(**(phone if touch else {}))
    page.click("#play")
    for x, y in ((0.25, 0.7), (0.2, 0.25)):
        point(page, x, y, touch=touch)
        wait_until(page, lambda at=(x, y): float(np.abs(agent(page) - at).max()) < 0.04)
    assert float(page.inner_text("#latency").split()[0]) > 0
    assert 0 < float(page.inner_text("#trust")) <= 1
    width = "() => document.scrollingElement.scrollWidth - innerWidth"
    assert page.evaluate(width) <= 0


def test_arrow_keys_move_the_agent(open_page: Callable[..., Any]) -> None:
    page = open_page()
    before = agent(page)
    page.focus("[data-name=A] .simulated canvas")
    page.keyboard.press("Space")
    page.keyboard.down("ArrowLeft")
    wait_until(page, lambda: agent(page)[0] < before[0] - 0.1)
    page.keyboard.up("ArrowLeft")
    assert abs(agent(page)[1] - before[1]) < 0.1


def test_a_gamepad_moves_the_agent(open_page: Callable[..., Any]) -> None:
    """No gamepad is plugged in here: the browser's own list of them is made to hold one."""
    page = open_page()
    before = agent(page)
    page.evaluate("() => { navigator.getGamepads = () => [null, { axes: [0.05, -1] }]; }")
    page.click("#play")
    wait_until(page, lambda: agent(page)[1] < before[1] - 0.1)
    # The stick's rest is not at zero exactly, and is no input.
    page.evaluate("() => { navigator.getGamepads = () => [{ axes: [0.1, 0.1] }]; }")
    inputs = page.get_attribute("body", "data-inputs")
    first = steps(page)
    wait_until(page, lambda: steps(page) > first + 3)
    settled = page.get_attribute("body", "data-inputs")
    wait_until(page, lambda: steps(page) > first + 8)
    assert int(inputs) <= int(settled) == int(page.get_attribute("body", "data-inputs"))


def test_every_control_is_reached_by_the_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    wanted = {"play", "step", "back", "fork", "record", "export", "theme"}
    wanted |= {"episode", "row", "seed", "denoising", "speed", "A simulated"}
    reached: set[str] = set()
    page.focus("#theme")
    for _ in range(40):
        focused = "() => document.activeElement.id || document.activeElement.getAttribute('aria-label')"
        reached.add(page.evaluate(focused))
        page.keyboard.press("Tab")
    assert wanted <= reached
    unnamed = """() => [...document.querySelectorAll('button, input, select, canvas[tabindex]')].filter(
        (one) => !(one.textContent.trim() || one.labels?.length || one.getAttribute('aria-label'))).length"""
    assert page.evaluate(unnamed) == 0
    before = steps(page)
    page.focus("[data-name=A] .simulated canvas")
    page.keyboard.press(".")
    wait_until(page, lambda: steps(page) == before + 1)
    page.keyboard.press("f")
    page.wait_for_selector("[data-name=B]")


def test_going_back_shows_what_was_there(open_page: Callable[..., Any]) -> None:
    page = open_page()
    point(page, 0.3, 0.6)
    first, shown = steps(page), picture(page)
    for number in range(10):
        page.click("#step")
        wait_until(page, lambda n=first + number + 1: steps(page) == n)
    assert np.abs(picture(page).astype(int) - shown).max() > 50
    page.click("#back")
    wait_until(page, lambda: steps(page) == first)
    assert np.abs(picture(page).astype(int) - shown).max() <= 1
    assert f"to step {first}" in page.inner_text("#status")


def test_the_film_has_every_step(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page()
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4"), "r") as film:
        assert sum(1 for _ in film.decode(video=0)) == steps(page) + 1
    page.click("#record")
    before = steps(page)
    page.click("#step")
    wait_until(page, lambda: steps(page) > before)
    with page.expect_download() as download:
        page.click("#record")
    recorded = json.loads(Path(download.value.path()).read_text())
    assert (recorded["world"], recorded["episode"], len(recorded["actions"])) == ("pusht", 0, 1)


def test_two_futures_are_compared(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.click("#fork")
    page.wait_for_selector("[data-name=B]")
    wait_until(page, lambda: "differ by 0.0 %" in page.inner_text("#apart"))
    # Both are driven: the same noise, the same actions.
    point(page, 0.4, 0.8)
    before = steps(page)
    page.click("#step")
    wait_until(page, lambda: steps(page) == steps(page, "B") == before + 1)
    assert np.abs(picture(page).astype(int) - picture(page, "B")).max() <= 1
    page.check("[name=drive][value=B]")
    for number in range(4):
        page.click("#step")
        wait_until(page, lambda n=before + number + 2: steps(page, "B") == n)
    assert steps(page) == before + 1
    assert "differ by 0.0 %" not in page.inner_text("#apart")
    page.click("#fork")
    page.wait_for_selector("[data-name=B]", state="detached")


def test_the_real_simulator_is_beside(open_page: Callable[..., Any]) -> None:
    pytest.importorskip("gym_pusht")
    page = open_page()
    point(page, 0.25, 0.75)
    before = steps(page)
    for number in range(6):
        page.click("#step")
        wait_until(page, lambda n=before + number + 1: steps(page) == n)
    simulated, real = detect(picture(page)[None]), detect(picture(page, kind="real")[None])
    # The same agent at the same place after the same actions, seen by a detector.
    assert np.abs(simulated.agent - real.agent).max() < 2.0
    assert np.abs(simulated.block - real.block).max() < 4.0
    assert float(page.inner_text("#difference").split()[0]) < 5


def test_settings_and_starts(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.fill("#denoising", "2")
    page.press("#denoising", "Enter")
    wait_until(page, lambda: "2 denoising steps from here on" in page.inner_text("#status"))
    page.fill("#row", "500")
    page.click("#start button")
    wait_until(page, lambda: "from row 500" in page.inner_text("#status"))
    assert steps(page) == 0
    page.fill("#row", "99999")
    page.eval_on_selector("#start", "form => form.noValidate = true")
    page.click("#start button")
    wait_until(page, lambda: "has rows 0 to 2009" in page.inner_text("#status"))
    assert "problem" in page.get_attribute("#status", "class")


def test_a_wrong_setting_is_put_back_and_the_clock_goes_on(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.click("#play")
    for field, wrong, said in (
        ("#denoising", "99", "Denoising steps: give a whole number from 1 to 16."),
        ("#denoising", "1.5", "Denoising steps: give a whole number from 1 to 16."),
        ("#seed", "-1", "Seed: give a whole number from 0 to 2147483647."),
    ):
        before = page.input_value(field)
        page.fill(field, wrong)
        page.press(field, "Enter")
        wait_until(page, lambda said=said: page.inner_text("#status") == said)
        wait_until(page, lambda field=field, before=before: page.input_value(field) == before)
        now = steps(page)
        wait_until(page, lambda now=now: steps(page) > now + 2)
    page.fill("#row", "99999")
    page.eval_on_selector("#start", "form => form.noValidate = true")
    page.click("#start button")
    wait_until(page, lambda: "has rows 0 to 2009" in page.inner_text("#status"))
    now = steps(page)
    wait_until(page, lambda: steps(page) > now + 2)


def test_sessions_of_a_page_that_is_left_are_closed(open_page: Callable[..., Any], address: str) -> None:
    page = open_page()
    page.click("#fork")
    page.wait_for_selector("[data-name=B]")
    before = httpx.get(f"{address}/health").json()["sessions"]
    for _ in range(3):
        page.reload()
        page.wait_for_selector("body[data-steps]")
        wait_until(page, lambda: httpx.get(f"{address}/health").json()["sessions"] == before - 1)
    page.goto("about:blank")
    wait_until(page, lambda: httpx.get(f"{address}/health").json()["sessions"] == before - 2)


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    """A server that asks for a token."""
    service = Service(load("pusht"), find_recordings("pusht", None), Limits())
    with running(service, token="open sesame") as url:
        yield url


def test_a_token_is_asked_for(browser: Any, locked: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(locked)
    page.wait_for_selector("#enter:visible")
    wait_until(page, lambda: "asks for a token" in page.inner_text("#status"))
    assert not page.is_visible("main")
    assert "header" not in page.inner_text("body").lower()
    page.fill("#token", "wrong")
    page.press("#token", "Enter")
    wait_until(page, lambda: page.inner_text("#status").startswith("Wrong token"))
    page.fill("#token", "open sesame")
    page.click("#enter button")
    page.wait_for_selector("body[data-steps]")
    assert not page.is_visible("#enter")
    # The tab keeps it; a link carries it.
    page.reload()
    page.wait_for_selector("body[data-steps]")
    page.close()
    page = browser.new_page()
    page.goto(f"{locked}/#token=open%20sesame")
    page.wait_for_selector("body[data-steps]", timeout=PATIENCE)
    page.close()


def test_the_documentation_asks_no_other_server(browser: Any, locked: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{locked}/docs")
    page.wait_for_selector(".opblock", timeout=PATIENCE)
    assert page.locator(".opblock").count() > 15
    assert all(url.startswith((locked, "data:")) for url in asked), asked
    page.click(".btn.authorize")
    page.fill(".auth-container input", "open sesame")
    page.click(".auth-container .btn.authorize")
    page.click(".btn-done")
    page.click("#operations-world-get_world_v1_world_get .opblock-summary-control")
    page.click(".try-out__btn")
    page.click(".execute")
    page.wait_for_selector(".responses-table.live-responses-table")
    assert page.inner_text(".live-responses-table tbody .response-col_status").startswith("200")
    page.close()


def test_dark_and_light(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != dark
    assert dark == "rgb(23, 25, 29)"
