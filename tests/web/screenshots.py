"""Pictures of the page for the documents: `python -m tests.web.screenshots`, in a repository that has a model."""

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
"""The picture's name, and what the browser that sees it has."""
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
            shown = Image.fromarray(pixels(person.page.screenshot(full_page=True, animations="disabled")))
            shown.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(folder / name, optimize=True)


def main() -> None:
    """Serve the model, and take the pictures."""
    path = shutil.which("chromium")
    if path is None:
        sys.exit(MISSING)
    port, command = free_port(), [sys.executable, "-m", "ldm.tools.cli", "web"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as out:
            served = subprocess.Popen([*command, "--port", str(port), *sys.argv[1:]], cwd=ROOT, stdout=out, stderr=out)
        try:
            wait_for(port, served, log)
            expect.set_options(timeout=SECONDS * 1000)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
                take(browser, f"http://127.0.0.1:{port}/", FOLDER)
        finally:
            served.terminate()
            served.wait(30)


if __name__ == "__main__":
    main()
