"""The page on a phone, in the dark, without a mouse, and for a screen reader."""

from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.web.conftest import PHONE
from tests.web.person import Person, pixels, seen

PROMPT = "a red circle above a blue square"
LOOKS: dict[str, dict[str, Any]] = {
    "desktop, light": {"color_scheme": "light"},
    "phone, dark": {"color_scheme": "dark", "viewport": PHONE, "has_touch": True},
}
MOST_TABS = 60
"""Presses of the key Tab that a person has patience for."""


def is_focused(person: Person, name: str) -> bool:
    """Whether the keyboard is at the element with this name or label, of those that are seen."""
    return person.page.evaluate(
        """name => {
            const found = document.activeElement;
            const label = found.closest("label") ?? (found.labels && found.labels[0]);
            return [found.ariaLabel, found.innerText, label && label.innerText]
                .some(text => text && text.trim().split("\\n")[0] === name);
        }""",
        name,
    )


def go_by_tab(person: Person, name: str) -> None:
    """Press Tab until the keyboard is at the element of this name."""
    for _ in range(MOST_TABS):
        person.page.keyboard.press("Tab")
        if is_focused(person, name):
            return
    raise AssertionError(f"{name} is not reached by {MOST_TABS} presses of Tab")


def test_all_is_done_without_a_mouse(person: Person) -> None:
    keyboard = person.page.keyboard
    go_by_tab(person, "Prompt")
    keyboard.type(PROMPT)
    button = person.form.get_by_role("button", name="Generate", exact=True)
    before = seen(button)
    go_by_tab(person, "Generate")
    assert (seen(button) != before).any(), "one sees where the keyboard is"
    keyboard.press("Enter")
    person.sees("1 image made")
    go_by_tab(person, "Thumbnail 1 of 1")
    keyboard.press("Enter")
    go_by_tab(person, "Replay")
    keyboard.press("Enter")
    person.sees("equal in all")


@pytest.mark.parametrize("traits", [LOOKS["phone, dark"]])
def test_a_phone_shows_all_of_its_width_and_nothing_beyond(person: Person) -> None:
    person.write(Prompt=PROMPT)
    person.press("Generate")
    person.sees("1 image made")
    person.open_first()
    overflow = "document.documentElement.scrollWidth"
    assert person.page.evaluate(overflow) <= PHONE["width"]
    box = person.page.locator("#gallery").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    # A hash needs some lines on a phone; a column of single letters would be ten times as high.
    assert person.page.evaluate("document.documentElement.scrollHeight") < 5 * PHONE["height"]


@pytest.mark.parametrize(("traits", "is_light"), [({"color_scheme": "light"}, True), ({"color_scheme": "dark"}, False)])
def test_the_page_is_light_or_dark_as_the_person_wants(person: Person, is_light: bool) -> None:
    person.page.get_by_role("heading").first.wait_for()
    shown = pixels(person.page.screenshot(animations="disabled")).mean(-1)
    assert (np.median(shown) > 200) == is_light and (np.median(shown) < 60) != is_light


@pytest.mark.parametrize("traits", LOOKS.values(), ids=LOOKS)
def test_a_screen_reader_has_what_it_needs(person: Person) -> None:
    person.press("Generate")  # without a prompt: an error
    person.write(Prompt=PROMPT)
    person.press("Generate")
    person.sees("1 image made")
    person.open_first()
    found = violations(person)
    for title in ("Inpaint", "Interpolate"):
        person.turn_to(title)
        found |= violations(person)
    assert not found


def violations(person: Person) -> set[str]:
    """What axe finds serious or critical."""
    response = Axe().run(person.page).response
    return {
        f"{rule['id']}: {node['target']}: {node['html'][:200]}"
        for rule in response["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    }
