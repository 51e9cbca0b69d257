"""How long a person waits: from the command to the first live frame, and from the pointer to the picture.

    python benchmarks/play.py                      # needs kinema[serve,dev] and a Chromium

Both are measured in a headless Chromium at the page of ``kinema play``: the first is the time until the page
has shown a step, the second what the page itself measures and plots, from an input event to the animation
frame after the picture that answers it was drawn.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import tyro
from playwright.sync_api import Page, sync_playwright


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    world: str = "pusht"
    """The world to play."""
    moves: int = 200
    """Movements of the pointer."""


def latencies(page: Page, moves: int) -> np.ndarray:
    """Milliseconds from pointer to picture."""
    box = page.locator("[data-name=A] .simulated canvas").bounding_box()
    assert box is not None
    found = []
    for number in range(moves):
        angle = number / 15
        x, y = 0.5 + 0.3 * np.cos(angle), 0.5 + 0.3 * np.sin(angle)
        before = page.get_attribute("body", "data-inputs")
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_selector(f"body[data-inputs]:not([data-inputs='{before}'])")
        found.append(float(page.get_attribute("body", "data-latency") or "nan"))
    return np.array(found)


def main(config: Config) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("error: no Chromium here; Debian's package is chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        started = time.perf_counter()
        command = [sys.executable, "-m", "kinema", "play", config.world, "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                (url,) = re.findall(r"http://\S+", server.stdout.readline())
                page.goto(url)
                page.wait_for_selector("body[data-steps]")
                print(f"first live frame after {time.perf_counter() - started:.1f} s", flush=True)
                found = latencies(page, config.moves)
                low, high = np.percentile(found, [50, 95])
                print(
                    f"pointer to picture: {low:.0f} ms (p50), {high:.0f} ms (p95) of {len(found)} movements"
                )
            finally:
                server.terminate()
                server.wait(30)
        browser.close()


if __name__ == "__main__":
    main(tyro.cli(Config))
