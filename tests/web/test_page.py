"""What people do on the page, in Chromium. Each test looks at the pixels or the text that they would see."""

import hashlib
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, FilePayload, Locator, expect

from ldm.core.images import encode_png
from ldm.sampling.origin import Origin
from ldm.tools.pipeline import Pipeline
from ldm.tools.tasks import pictures
from ldm.tools.web import uploads
from tests.web.conftest import SECONDS
from tests.web.person import Person, likeness, pixels, seen

PROMPT = "a red circle above a blue square"
OTHER = "a green star"
SIZE_PX = 64


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the model's size, black on the left and grey on the right."""
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    found = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    found[:, SIZE_PX // 2 :] = 128
    Image.fromarray(found).save(path)
    return path


def generate(person: Person, prompt: str, **fields: str) -> bytes:
    """The newest image after the button is pressed."""
    count = person.thumbnails.count()
    person.write(Prompt=prompt, **fields)
    person.press("Generate")
    return person.pngs(count + 1)[0]


def test_an_image_of_a_prompt_is_that_of_the_pipeline(person: Person, pipeline: Pipeline) -> None:
    png = generate(person, PROMPT)
    person.sees("1 image made")
    assert [png] == list(pipeline.pngs([PROMPT]))
    assert likeness(seen(person.thumbnails.first), pixels(png)) > 0.7, "what the screen shows"


def test_several_images_are_those_of_the_pipeline(person: Person, pipeline: Pipeline) -> None:
    person.write(Prompt=PROMPT, Images="3")
    person.press("Generate")
    person.sees("3 images made")
    assert sorted(person.pngs(3)) == sorted(pipeline.pngs([PROMPT] * 3))


def test_an_example_becomes_the_prompt(person: Person, model: Path) -> None:
    example = person.form.locator("#generate-examples button").first
    expect(example).to_have_text(re.compile(r"\w"))  # the button is there before its words
    caption = example.inner_text()
    assert len(caption.split()) > 2
    example.click()
    expect(person.field("Prompt")).to_have_value(caption)


def test_another_seed_draws_another_image_and_the_same_one_the_same(person: Person) -> None:
    first = generate(person, PROMPT, Seed="5")
    person.press("Another seed")
    again, _ = person.pngs(2)
    chosen = int(person.field("Seed").input_value())
    assert chosen != 5 and Origin.read(again, "again").settings["seed"] == chosen
    assert (pixels(again) != pixels(first)).mean() > 0.5
    assert generate(person, PROMPT, Seed="5") == first


def test_cancel_stops_the_sampling(person: Person) -> None:
    person.write(Prompt=PROMPT)
    person.press("Settings")
    person.write(Steps="1000")
    person.press("Generate")
    person.sees(" of 1000")
    person.press("Cancel")
    person.sees("Cancelled")
    expect(person.thumbnails).to_have_count(0)
    # A model that went on would be busy for as long as 1000 steps take.
    person.write(Steps="2")
    person.press("Generate")
    person.sees("1 image made")
    assert Origin.read(person.pngs(1)[0], "image").settings["num_steps"] == 2


LATE_MS = 2000
LATE = f"""
const direct = window.fetch;
window.fetch = async (...asked) => {{
  const answer = await direct(...asked);
  const url = asked[0] instanceof Request ? asked[0].url : String(asked[0]);
  if (!url.includes("queue/data")) return answer;
  const parts = answer.body.getReader();
  const late = new ReadableStream({{
    async start(told) {{
      for (let part = await parts.read(); !part.done; part = await parts.read()) {{
        const value = part.value;
        setTimeout(() => told.enqueue(value), {LATE_MS});
      }}
    }},
  }});
  return new Response(late, answer);
}};
"""
"""What a page is told of a drawing comes later than the answers to presses, as on a busy machine."""


def test_a_step_that_is_told_after_the_press_of_cancel_is_not_the_last_word(context: BrowserContext) -> None:
    context.add_init_script(LATE)
    person = Person.before(context)
    person.write(Prompt=PROMPT)
    person.press("Settings")
    person.write(Steps="1000")
    person.press("Generate")
    person.sees(" of 1000")
    # As if the model were amid a long step: the press is answered, and the drawing has no last word of its own.
    answer = {"data": ["<p>Cancelled.</p>", {"__type__": "update", "interactive": False}], "is_generating": False}
    context.route("**/run/predict", lambda route: route.fulfill(json=answer))
    person.press("Cancel")
    person.sees("Cancelled")
    context.unroute_all()
    person.page.wait_for_timeout(2 * LATE_MS)
    person.sees("Cancelled")
    person.write(Steps="2")
    person.press("Generate")
    person.sees("1 image made")


def test_a_mask_that_is_painted_says_what_is_drawn_anew(person: Person, photo: Path) -> None:
    person.turn_to("Inpaint")
    person.give("inpaint-image", photo)
    paint_left(person)
    png = generate(person, OTHER, Resamplings="1")
    changed = (pixels(png) != np.asarray(Image.open(photo))).any(-1)
    assert changed[16:48, 10:22].mean() > 0.9 and not changed[:, SIZE_PX // 2 :].any()
    assert Origin.read(png, "image").task == "inpaint"
    person.open_first()
    files = person.page.locator("#files a[href]")
    expect(files).to_have_count(2)
    found = [person.page.request.get(str(link.get_attribute("href"))).body() for link in files.all()]
    assert {hashlib.sha256(each).hexdigest() for each in found} == set(Origin.read(png, "image").pictures.values())


def test_a_mask_lies_where_it_was_painted_at_any_size(person: Person, photo: Path) -> None:
    person.turn_to("Inpaint")
    person.give("inpaint-image", photo)
    person.press("Settings")
    person.page.wait_for_timeout(2000)  # as in Person.write: fields below a heading are made anew
    for side, text in (("height", "64"), ("width", "128")):
        person.page.locator(f"#inpaint-size_px_{side} textarea, #inpaint-size_px_{side} input").fill(text)
    canvas = person.page.locator("#inpaint-painted canvas").filter(visible=True).first
    expect(canvas).to_be_visible()
    paint_left(person)
    changed = pixels(generate(person, OTHER, Resamplings="1")) != pixels(photo_at(photo, 64, 128))
    assert changed.any(-1)[16:48, 20:44].mean() > 0.9 and not changed[:, 64:].any()


def photo_at(photo: Path, height: int, width: int) -> bytes:
    """What the model sees of the picture at this size."""
    png, _ = uploads.fitted(pictures.read(photo), (height, width), "image")
    return encode_png(png.pixels)


def paint_left(person: Person) -> None:
    """Paint a line down the middle of the black half, as soon as the picture is shown."""
    easel = person.page.locator("#inpaint-painted canvas").filter(visible=True).first
    expect(easel).to_be_visible()
    end = time.monotonic() + SECONDS
    grey = np.zeros(0)
    while grey.sum() < 5000 and time.monotonic() < end:
        person.page.wait_for_timeout(500)
        before = seen(easel)
        grey = (before == 128).all(-1)
    rows, columns = np.nonzero(grey.sum(1) > 50)[0], np.nonzero(grey.sum(0) > 50)[0]
    top, bottom, middle = int(rows[0]), int(rows[-1]), int(columns[0])
    x = middle - (int(columns[-1]) - middle) * 0.5
    paint(person, easel, (x, top + (bottom - top) * 0.2), (x, top + (bottom - top) * 0.8))
    stroke = ((seen(easel) == 255) & (before < 140)).all(-1)
    assert stroke.any() and not stroke[:, middle:].any(), "one sees it, on the left half"


def paint(person: Person, easel: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a line with the brush. start, end: x and y in the easel."""
    box = easel.bounding_box()
    assert box is not None
    mouse = person.page.mouse
    mouse.move(box["x"] + start[0], box["y"] + start[1])
    mouse.down()
    mouse.move(box["x"] + end[0], box["y"] + end[1], steps=12)
    mouse.up()


@pytest.mark.parametrize("kind", ["text", "half"])
def test_a_bad_picture_is_an_error_that_one_can_read(person: Person, photo: Path, kind: str) -> None:
    data = b"this is no picture" if kind == "text" else photo.read_bytes()[:100]
    person.turn_to("Image to image")
    person.give("img2img-image", FilePayload(name="photo.png", mimeType="image/png", buffer=data))
    person.write(Prompt=PROMPT)
    person.press("Generate")
    alert = person.page.get_by_role("alert").filter(visible=True)
    expect(alert).to_contain_text("image: ")
    expect(alert).to_contain_text("expected")
    expect(alert).to_contain_text("fix: ")
    assert "Traceback" not in person.page.inner_text("body")
    expect(person.field("Prompt")).to_have_value(PROMPT)
    # The page goes on.
    person.give("img2img-image", photo)
    assert Origin.read(generate(person, PROMPT), "image").task == "img2img"


def test_a_picture_that_is_too_large_is_refused(person: Person) -> None:
    person.turn_to("Image to image")
    data = bytes(17 * 2**20)
    person.give("img2img-image", FilePayload(name="large.png", mimeType="image/png", buffer=data))
    expect(person.page.get_by_text("16").filter(visible=True).first).to_be_visible()


def test_a_value_out_of_range_is_an_error_that_one_can_read(person: Person) -> None:
    person.press("Settings")
    person.write(Prompt=PROMPT, Steps="0")
    person.press("Generate")
    alert = person.page.get_by_role("alert").filter(visible=True)
    expect(alert).to_contain_text("num_steps")
    expect(alert).to_contain_text("fix: ")


def test_an_image_says_how_it_was_made_and_is_made_again(person: Person) -> None:
    png = generate(person, PROMPT, Seed="7")
    person.open_first()
    account = person.page.locator("#account")
    expect(account).to_contain_text("How was this made?")
    expect(account).to_contain_text(PROMPT)
    command = f"ldm generate '{PROMPT}' --seed 7 --output pictures"
    expect(account.locator("#command textarea, #command input")).to_have_value(command)
    person.press("Replay")
    person.sees(f"equal in all {SIZE_PX * SIZE_PX * 3} values")
    with person.page.expect_download() as download:
        person.page.locator("#download").click()
    assert download.value.path().read_bytes() == png


def test_a_new_image_closes_the_one_that_was_chosen_and_its_account(person: Person) -> None:
    generate(person, PROMPT, Seed="7")
    person.open_first()
    person.write(Seed="8")
    person.press("Generate")
    expect(person.page.locator("#account")).to_be_hidden()
    expect(person.page.locator("#gallery .preview")).to_have_count(0)
    expect(person.thumbnails).to_have_count(2)
    person.open_first()
    command = person.page.locator("#account").locator("#command textarea, #command input")
    expect(command).to_have_value(re.compile("--seed 8"))
    shown = person.page.locator("#gallery .preview img").first
    png = person.page.request.get(str(shown.get_attribute("src"))).body()
    assert Origin.read(png, "image").settings["seed"] == 8


def test_two_tabs_draw_at_once_and_each_gets_its_own(context: BrowserContext, pipeline: Pipeline) -> None:
    first = Person.before(context)
    first.press("Settings")
    first.write(Prompt=PROMPT, Steps="1000")
    first.press("Generate")
    first.sees(" of 1000")
    second = Person.before(context)
    second.write(Prompt=OTHER)
    second.press("Generate")
    second.sees("1 image made")
    assert second.pngs(1) == list(pipeline.pngs([OTHER]))
    first.page.bring_to_front()  # a tab behind another one is drawn late
    first.sees("1 image made")
    assert first.pngs(1) == list(pipeline.pngs([PROMPT], num_steps=1000))


@pytest.mark.parametrize(
    ("title", "task"), [("Image to image", "img2img"), ("Outpaint", "outpaint"), ("Denoise", "denoise")]
)
def test_a_task_draws_from_a_picture(person: Person, photo: Path, title: str, task: str) -> None:
    person.turn_to(title)
    person.give(f"{task}-image", photo)
    if task == "outpaint":
        person.write(Resamplings="1")
    image = pixels(generate(person, PROMPT))
    known = np.asarray(Image.open(photo))
    if task == "outpaint":
        margin = (image.shape[0] - SIZE_PX) // 2
        assert margin > 0
        image = image[margin:-margin, margin:-margin]
    assert image.shape == known.shape
    assert (image == known).all() == (task == "outpaint"), "the picture stays inside its new border alone"
