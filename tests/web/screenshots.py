"""Pictures of the page and of the report for the documents: `python -m tests.web.screenshots`, in a repository that has
a model and its samples."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from tests.import_closure import ROOT
from tests.web.conftest import DESKTOP, FLAGS, MISSING, PHONE, SECONDS, free_port, wait_for
from tests.web.person import Person, pixels

FOLDER = ROOT / "docs/images"
PROMPT = "a small red circle above a large blue square"
LOOKS: dict[str, dict[str, Any]] = {
    "web_desktop.png": {"viewport": {**DESKTOP, "height": 740}, "color_scheme": "light"},
    "web_phone.png": {"viewport": PHONE, "color_scheme": "dark"},
}
"""The picture's name, and what the browser that sees the page has."""
REPORTS: dict[str, dict[str, Any]] = {
    "report_desktop.png": {"viewport": {"width": 1100, "height": 760}, "color_scheme": "light"},
    "report_phone.png": {"viewport": {"width": 375, "height": 760}, "color_scheme": "dark"},
}
"""The same of the report."""
NUM_IMAGES = 4
NUM_COLOURS = 128
"""Enough for a page, in a third of the bytes."""


def take(browser: Browser, url: str, folder: Path) -> None:
    """Write a picture of each look, with images of `PROMPT` in the gallery."""
    for name, look in LOOKS.items():
        with browser.new_context(base_url=url, locale="en", **look) as context:
            context.set_default_timeout(SECONDS * 1000)
            person = Person.before(context)
            person.write(Prompt=PROMPT, Images=str(NUM_IMAGES))
            person.press("Generate")
            person.sees(f"{NUM_IMAGES} images made")
            person.pngs(NUM_IMAGES)
            person.page.mouse.wheel(0, -10_000)
            save(person.page.screenshot(full_page=True, animations="disabled"), folder / name)


def take_report(browser: Browser, report: Path, folder: Path) -> None:
    """Write a picture of what each look first shows of a report."""
    for name, look in REPORTS.items():
        with browser.new_context(locale="en", **look) as context:
            page = context.new_page()
            page.goto(report.as_uri())
            save(page.screenshot(animations="disabled"), folder / name)


def save(png: bytes, path: Path) -> None:
    """Write a screenshot in few colours."""
    Image.fromarray(pixels(png)).quantize(NUM_COLOURS, kmeans=4, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Write the report and serve the model, and take the pictures."""
    path = shutil.which("chromium")
    if path is None:
        sys.exit(MISSING)
    port, command = free_port(), [sys.executable, "-m", "ldm.tools.cli"]
    with tempfile.TemporaryDirectory() as folder:
        log, report = Path(folder) / "log.txt", Path(folder) / "report.html"
        subprocess.run([*command, "report", str(report)], cwd=ROOT, check=True)
        web = [*command, "web", "--port", str(port), *sys.argv[1:]]
        with log.open("w") as out:
            served = subprocess.Popen(web, cwd=ROOT, stdout=out, stderr=out)
        try:
            wait_for(port, served, log)
            expect.set_options(timeout=SECONDS * 1000)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
                take_report(browser, report, FOLDER)
                take(browser, f"http://127.0.0.1:{port}/", FOLDER)
        finally:
            served.terminate()
            served.wait(30)


if __name__ == "__main__":
    main()
