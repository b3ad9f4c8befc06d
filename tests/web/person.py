"""What a person does on the page, and what they see there."""

import io
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, TimeoutError, expect

LOOK_MS, MOST_LOOKS = 500, 20
Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Person:
    """A person before the page. All is found by its name, as a screen reader tells it; regions by their ids."""

    page: Page

    @classmethod
    def before(cls, context: BrowserContext) -> Self:
        """One who has opened it in a new tab of a browser."""
        page = context.new_page()
        page.goto("/")
        person = cls(page)
        expect(person.form.get_by_role("button", name="Generate", exact=True)).to_be_visible()
        return person

    @property
    def form(self) -> Locator:
        """What stands below the chosen tab."""
        return self.page.locator("[role=tabpanel]:visible")

    @property
    def status(self) -> Locator:
        """The line that says what the page does, or what is wrong."""
        return self.page.locator("#status")

    @property
    def thumbnails(self) -> Locator:
        """Images in the gallery, in order."""
        return self.page.locator("#gallery .thumbnail-lg img, #gallery .thumbnail-item img").filter(visible=True)

    def turn_to(self, title: str) -> None:
        """Choose a tab; where there is no room for all, from the menu of the others."""
        tab = self.page.get_by_role("tab", name=title, exact=True)
        if tab.count() == 0:
            self.page.get_by_role("button", name="More tabs").click()
            tab = self.page.get_by_role("button", name=title, exact=True).filter(visible=True)
        tab.click()
        expect(self.form.get_by_role("button", name="Generate", exact=True)).to_be_visible()

    def field(self, label: str) -> Locator:
        """The field of a label, in the chosen tab."""
        return self.form.get_by_label(label, exact=True)

    def write(self, **texts: str) -> None:
        """Fill fields of the chosen tab. texts: by label, with _ for spaces.

        Fields below a heading that was just opened are made anew within a moment, and lose what was written sooner than
        a hand could; so look once more.
        """
        fields = {self.field(label.replace("_", " ")): text for label, text in texts.items()}
        for _ in range(MOST_LOOKS):
            for field, text in fields.items():
                field.fill(text)
            self.page.wait_for_timeout(LOOK_MS)
            if all(field.input_value() == text for field, text in fields.items()):
                return
        raise AssertionError(f"the page does not keep what is written: {texts}")

    def press(self, name: str) -> None:
        """Click a button, wherever it is seen. Gradio writes an arrow after the names of some."""
        self.page.get_by_role("button", name=re.compile(rf"^{re.escape(name)}\W*$")).filter(visible=True).click()

    def give(self, element: str, file: Path | FilePayload) -> None:
        """Choose a file for the picture of this id."""
        self.page.locator(f"#{element} input[type=file]").set_input_files(file)

    def sees(self, text: str) -> None:
        """Wait until the status says it."""
        expect(self.status).to_contain_text(text)

    def open_first(self) -> None:
        """Click the first image, and wait until the page says how it was made.

        The last answer of a drawing, after which nothing can be cancelled, makes the gallery anew, and a click on what
        it replaces is lost; so look once more.
        """
        expect(self.page.get_by_role("button", name="Cancel", exact=True)).to_be_disabled()
        for _ in range(MOST_LOOKS):
            self.thumbnails.first.click()
            with suppress(TimeoutError):
                self.page.locator("#account").get_by_text("How was this made?").wait_for(timeout=10 * LOOK_MS)
                return
        raise AssertionError("the page does not say how an image was made")

    def pngs(self, count: int) -> list[bytes]:
        """The files behind the images of the gallery, as soon as there are so many."""
        expect(self.thumbnails).to_have_count(count)
        images = self.thumbnails.all()
        for image in images:
            expect(image).to_have_attribute("src", re.compile("file="))
        return [self.page.request.get(str(image.get_attribute("src"))).body() for image in images]


def seen(element: Locator) -> Pixels:
    """The pixels of a part of the page, as they are on the screen."""
    return pixels(element.screenshot(animations="disabled"))


def pixels(png: bytes) -> Pixels:
    """Those of an image."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def likeness(one: Pixels, other: Pixels) -> float:
    """Correlation of two pictures of the same content, which may have different sizes: 1 = alike."""
    small = [np.asarray(Image.fromarray(each).resize((8, 8), Image.Resampling.BOX), float) for each in (one, other)]
    return float(np.corrcoef(*(each.ravel() for each in small))[0, 1])
