"""The pictures of the viewers in these pages, taken by a headless Chromium (Playwright's, or the system's):

    fastvggt reconstruct --demo -o demo
    python docs/pictures.py demo

Needs the extras view and dev. Writes turning.webp, view.jpg, viewer.jpg and report.jpg beside this file.
"""

import io
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from fastvggt_jax.seeing.clouds import clouds
from fastvggt_jax.seeing.report import write_report
from fastvggt_jax.seeing.result import read_result
from fastvggt_jax.seeing.share import write_page
from fastvggt_jax.seeing.viewer import Viewer
from fastvggt_jax.testing.browser import chromium

HERE = Path(__file__).parent
WIDE, HIGH = 1100, 690  # pixels of a picture
FRAMES, MILLISECONDS, SWING, NEARER = 54, 65, 30, 0.8  # of the one that turns; degrees to either side
TURN = """([angle, target, nearer]) => {
  const {start} = window, away = turn(add(start.position, target, -1), unit(data.up), angle);
  Object.assign(view.eye, {position: add(target, away, nearer), forward: unit(away.map(x => -x))});
  draw();
}"""


def main(folder: str) -> None:
    result = read_result(folder)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        browser = chromium(playwright)
        if browser is None:
            sys.exit("there is no Chromium: install the system's, or run `playwright install chromium`")
        shown = clouds([result])
        page_file, report_file = Path(scratch) / "page.html", Path(scratch) / "report.html"
        write_page(shown, page_file, result.folder.resolve().name)
        write_report(result, report_file)
        cloud = shown[0]
        middle = np.median(cloud.xyz[cloud.chosen(25.0)], axis=0)
        turning(opened(browser, page_file.as_uri(), 640, 360), middle.tolist())
        static_page(opened(browser, page_file.as_uri(), WIDE, HIGH))
        jpeg(opened(browser, report_file.as_uri(), WIDE, 1150), "report.jpg")
        viewer = Viewer(shown)
        try:
            in_viewer(opened(browser, viewer.url, 1400, 800), viewer)
        finally:
            viewer.stop()
        browser.close()


def opened(browser: Browser, url: str, width: int, height: int) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2)
    page.goto(url)
    return page


def turning(page: Page, middle: list[float]) -> None:
    """The cloud, swinging about its middle."""
    page.add_style_tag(content="#panel, #strip {display: none}")
    page.wait_for_function("window.view && view.clouds[0].drawn > 0")
    page.evaluate("at('size').value = 2")
    page.evaluate("window.start = {...view.eye}")
    pictures = []
    for frame in range(FRAMES):
        angle = math.radians(SWING) * math.sin(2 * math.pi * frame / FRAMES)
        page.evaluate(TURN, [angle, middle, NEARER])
        pictures.append(picture(page))
    first, *rest = pictures
    how = dict(save_all=True, append_images=rest, duration=MILLISECONDS, loop=0)
    first.save(HERE / "turning.webp", quality=60, method=6, **how)


def static_page(page: Page) -> None:
    page.wait_for_function("window.view && view.clouds[0].drawn > 0")
    jpeg(page, "view.jpg")


def in_viewer(page: Page, viewer: Viewer) -> None:
    end = time.monotonic() + 120
    while not viewer.server.get_clients() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(20)  # until the points have come and are drawn
    page.locator(".mantine-Notification-closeButton").click()  # that there is no GPU
    time.sleep(3)
    jpeg(page, "viewer.jpg")


def picture(page: Page) -> Image.Image:
    """What is seen, drawn twice as large and made smaller, so that edges are smooth."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def jpeg(page: Page, name: str) -> None:
    picture(page).save(HERE / name, quality=80, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
