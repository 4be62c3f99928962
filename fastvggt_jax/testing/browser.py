"""A Chromium without a window or a GPU, for tests of pages and the pictures of docs/ (Playwright)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = "chromium", "chromium-browser", "google-chrome"
SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def chromium(playwright: Playwright) -> Browser | None:
    """The system's, else Playwright's own; None where there is neither."""
    places = (*NAMES, playwright.chromium.executable_path)
    path = next(filter(None, map(shutil.which, places)), None)
    return None if path is None else playwright.chromium.launch(executable_path=path, args=SOFTWARE)
