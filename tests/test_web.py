"""The page of a model, from a request to the PNG in the gallery, without a browser."""

import hashlib
import html
import io
import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gradio.components.image_editor import AcceptBlobs, EditorData
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from ldm.core.errors import ConfigError, IntegrityError, Interrupted
from ldm.core.images import decode_png, encode_png
from ldm.sampling import samplers
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.tools import cli, pipeline
from ldm.tools.model.parts import Parts
from ldm.tools.tasks import masks, params, pictures
from ldm.tools.web import account, answers, components, controls, page, server, uploads, watching
from ldm.tools.web.examples import Examples
from ldm.tools.web.limits import DEFAULTS, Limits
from ldm.tools.web.studio import Made, Note, Pictures, Progress, Replayed, Request, Studio
from tests import trained_data
from tests.import_closure import ROOT

PROMPT = "a red star"
SMALL = Limits(num_images=4, num_calls=60, upload_bytes=30_000, upload_pixels=10_000)
NOBODY = frozenset[str]()
PATIENCE_SECONDS = 60.0
"""For an answer of the server, which other tests keep busy."""


@pytest.fixture(scope="module")
def root(root: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("image", "last_image"):
        Image.fromarray(pixels if name == "image" else pixels[::-1]).save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def studio(loaded: pipeline.Pipeline) -> Iterator[Studio]:
    torch.set_num_threads(1)
    found = Studio(lambda: loaded, SMALL)
    yield found
    found.close()


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(root)
    yield root
    shutil.rmtree(root / "out", ignore_errors=True)


def of_text(num_images: int = 1, prompt: str = PROMPT, **settings: Any) -> Request:
    return Request(None, prompt, num_images, settings, {})


def of_task(root: Path, task: str, **settings: Any) -> Request:
    model = params.class_of(task)
    given = {"mask": masks.NAMES[2]} if "mask" in model.inputs() else {}
    paths = {name: root / f"{name}.png" for name in (*model.inputs(), *model.optional_inputs()) if name != "mask"}
    return Request(task, PROMPT, 1, settings, pictures.row({**paths, **given}))


def pngs(events: Iterator[Any]) -> list[bytes]:
    return [event.png for event in events if isinstance(event, Made)]


def written(root: Path, *arguments: str) -> list[bytes]:
    start, *rest = arguments
    output = [] if "--output" in rest else ["--output", "out"]
    assert cli.main([start, "--overwrite", *output, *rest]) == 0
    return [path.read_bytes() for path in sorted((root / "out").iterdir())]


# The model.


def test_images_are_those_that_ldm_writes_with_these_settings(studio: Studio, here: Path) -> None:
    settings = {"seed": 7, "num_steps": 3, "sampler": {"kind": "ddim", "eta": 0.5}, "guidance_scale": 4.0}
    options = ["--seed", "7", "--num-steps", "3", "--sampler", "ddim,eta=0.5", "--guidance-scale", "4"]
    made = pngs(studio.draw(of_text(3, **settings), "a visitor"))
    assert made == written(here, "generate", PROMPT, "--num-images", "3", *options)
    assert len(set(made)) == 3


TASKS = {
    "img2img": {"strength": 0.5},
    "inpaint": {"num_resamplings": 2, "jump_length": 1},
    "outpaint": {"num_resamplings": 1},
    "upscale": {"num_resamplings": 2, "jump_length": 2},
    "alternate_lines": {"num_resamplings": 1},
    "variations": {"strength": 1.0},
    "interpolate": {"num_frames": 3},
    "invert": {"edit": "a blue cross"},
    "denoise": {},
}


@pytest.mark.parametrize("task", params.names())
def test_the_work_of_a_task_is_known_beforehand_and_its_account_makes_it_again(
    studio: Studio, here: Path, loaded: pipeline.Pipeline, task: str
) -> None:
    request = of_task(here, task, num_steps=4, **TASKS[task])
    events = list(studio.draw(request, ""))
    steps = [event for event in events if isinstance(event, Progress)]
    assert [step.done for step in steps] == list(range(1, steps[-1].total + 1)), "the rehearsal counts what is done"
    made = pngs(iter(events))
    for name, picture in request.pictures.items():
        Image.fromarray(picture.pixels).save(f"{name}.png")
    words = shlex.split(account.command(Origin.read(made[-1], ""), loaded.drawing, loaded.tasks))
    assert words[0] == "ldm" and words[-2:] == ["--output", "pictures"]
    again = [decode_png(png) for png in written(here, *words[1:-2])]
    assert all(np.array_equal(decode_png(png), pixels) for png, pixels in zip(made, again, strict=True))


@pytest.mark.parametrize("model", samplers.kinds(), ids=lambda model: model.__name__)
def test_every_sampler_is_rehearsed_right(loaded: pipeline.Pipeline, model: Any) -> None:
    values = {key: 0.5 if field.annotation is float else 2 for key, field in model.model_fields.items()}
    (kind,) = model.model_fields["kind"].annotation.__args__
    calls = {name: 0 for name in ("watched", "rehearsed")}

    def count(name: str) -> None:
        calls[name] += 1

    settings = {"num_steps": 4, "sampler": {**values, "kind": kind}}
    for name in calls:
        other = getattr(watching, name)(loaded, lambda *_, name=name: count(name))
        made = other(PROMPT, **settings)
        if name == "watched":
            assert torch.equal(made, loaded(PROMPT, **settings)), "watching changes no pixel"
    assert calls["watched"] == calls["rehearsed"] >= 4


def test_cancel_ends_the_sampling_before_the_next_step(studio: Studio) -> None:
    events = studio.draw(of_text(num_steps=50), "one")
    assert isinstance(next(events), Progress)
    assert not studio.cancel("another") and studio.cancel("one")
    with pytest.raises(Interrupted, match=r"cancelled after \d+ of 50 steps"):
        last = [event.done for event in events if isinstance(event, Progress)]
        assert last[-1] < 50
    assert not studio.cancel("one"), "nothing is done for them any more"
    assert len(pngs(studio.draw(of_text(), "one"))) == 1, "the next request is served"


def test_what_waits_is_cancelled_too(studio: Studio) -> None:
    first, second = (studio.draw(of_text(num_steps=50), name) for name in ("one", "two"))
    next(first)
    assert studio.cancel("two") and studio.cancel("one")
    for events in (first, second):
        with pytest.raises(Interrupted, match="cancelled after" if events is first else "cancelled before it began"):
            list(events)
    assert not studio.cancel("two")


def test_whoever_stops_listening_stops_the_work(studio: Studio) -> None:
    before = threading.active_count()
    events = studio.draw(of_text(num_steps=50), "one")
    next(events)
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(pngs(studio.draw(of_text(), "two"))) == 1
    assert threading.active_count() == before


def test_requests_are_served_in_their_order(loaded: pipeline.Pipeline) -> None:
    seeds: list[int] = []

    class Logging(pipeline.Pipeline):
        def pngs(self, *arguments: Any, **settings: Any) -> Iterator[bytes]:
            seeds.append(settings["seed"])
            return super().pngs(*arguments, **settings)

    studio = Studio(lambda: Logging(**vars(loaded)), SMALL)
    waiting = [studio.draw(of_text(seed=seed, num_steps=1), str(seed)) for seed in range(5)]
    for events in reversed(waiting):
        assert len(pngs(events)) == 1
    studio.close()
    assert seeds[::2] == seeds[1::2] == [0, 1, 2, 3, 4], "rehearsed and drawn, one request after the other"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (of_text(0), "number of images: 0 images; expected 1 to 4"),
        (of_text(5), "number of images: 5 images; expected 1 to 4"),
        (of_text(num_steps=61), "request: more than 60 calls of the network; expected at most 60"),
        (of_text(num_steps=0), "num_steps: found 0; expected an integer >= 1"),
        (of_text(size_px=(60, 64)), "size_px: 60 x 64; expected multiples of 16"),
        (of_text(size_px=(4096, 4096)), "size: 1 images of 4096 x 4096"),
        (of_text(size_px=(512, 576)), "size: 1 images of 512 x 576 pixels; expected at most 262144 pixels"),
        (of_text(size_px=(512, 512), num_steps=5), "request: calls of the network for more than 256 images of the"),
        (of_text(4, num_steps=60, sampler={"kind": "ddim", "eta": 0.0}, size_px=(128, 64)), "request: calls of the"),
        (of_text(prompt="x\ud800"), "prompt 1: "),
        (Request("interpolate", PROMPT, 1, {"num_frames": 5, "last_noise": True}, {}), "number of images: 5 images"),
        (Request("interpolate", PROMPT, 1, {"num_frames": 2}, {}), "interpolate: equal ends"),
    ],
)
def test_what_is_too_much_or_wrong_is_refused_before_the_model_is_asked(
    loaded: pipeline.Pipeline, request_: Request, message: str
) -> None:
    generator = replace(loaded.generator, unet=_Untouchable(loaded.generator.unet))  # pyright: ignore[reportArgumentType]
    studio = Studio(lambda: replace(loaded, generator=generator), replace(SMALL, num_pixels=2**20, num_asked_areas=256))
    with pytest.raises(ConfigError) as error:
        list(studio.draw(request_, ""))
    studio.close()
    assert str(error.value).startswith(message) and "\nfix: " in str(error.value)


class _Untouchable:
    """A network that may be looked at, and never asked."""

    def __init__(self, inner: torch.nn.Module) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, *_: Any) -> None:
        raise AssertionError("the network was asked")


def test_notes_say_what_a_prompt_cannot_mean(studio: Studio) -> None:
    events = list(studio.draw(of_text(prompt="a unicorn " + "star " * 60), ""))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0] == "No training caption has: unicorn." and "tokens are cut to the" in notes[1]


def test_a_replay_compares_every_value(studio: Studio, here: Path) -> None:
    path = of_task(here, "interpolate", num_frames=3, num_steps=4)
    for request in (of_text(3, seed=4), of_task(here, "img2img"), path):
        png = pngs(studio.draw(request, ""))[-1]
        assert list(studio.replay(png, "", NOBODY))[-1] == Replayed(64 * 64 * 3, 0)
        origin, pixels = Origin.read(png, ""), decode_png(png).copy()
        pixels[3, 4] ^= 1
        assert list(studio.replay(origin.png(pixels), "", NOBODY))[-1] == Replayed(64 * 64 * 3, 3)


def test_a_replay_of_what_cannot_be_here_is_refused(studio: Studio, here: Path) -> None:
    plain, drawn = (pngs(studio.draw(request, ""))[0] for request in (of_text(), of_task(here, "img2img")))
    pixels = decode_png(plain)

    def changed(png: bytes, **values: Any) -> bytes:
        return Origin.read(png, "").model_copy(update=values).png(pixels)

    guide, settings = {"kind": "autoguidance", "directory": "data/secret"}, Origin.read(plain, "").settings
    cases: list[tuple[bytes, type[Exception], str]] = [
        (b"no png", IntegrityError, "picture: no PNG that says"),
        (encode_png(pixels), IntegrityError, "picture: no PNG that says"),
        (changed(plain, models={}), IntegrityError, "replay: an image of"),
        (changed(plain, batch_size=4000, position=3999), ConfigError, "number of images: 4000 images"),
        (
            changed(plain, settings=settings | {"guidance": guide}),
            ConfigError,
            "guidance.directory",
        ),
        (changed(drawn, pictures={"image": "0" * 64}), ConfigError, "picture: no image to make it from"),
    ]
    for png, kind, message in cases:
        with pytest.raises(kind, match=f"^{message}"):
            list(studio.replay(png, "", NOBODY))


def test_pictures_are_kept_as_far_as_they_fit() -> None:
    kept, given = Pictures(2000), [pictures.of(np.full((16, 16, 3), level, np.uint8)) for level in range(4)]
    kept.remember(given[:2])
    kept.remember(given[:1])
    kept.remember(given[2:3])
    names = {name: picture.sha256 for name, picture in zip("abcd", given, strict=True)}
    origin = Origin(prompt="", prompt_number=0, settings={}, batch_size=1, position=0, models={})
    assert kept.of(origin.model_copy(update={"pictures": {"a": names["a"], "c": names["c"]}})).keys() == {"a", "c"}
    with pytest.raises(ConfigError, match="no b to make it from"):
        kept.of(origin.model_copy(update={"pictures": {"b": names["b"]}}))


# Pictures of visitors.


def test_a_picture_has_the_hash_of_its_file_and_the_pixels_that_a_task_reads(here: Path) -> None:
    read = uploads.read("image.png", "image", SMALL)
    plain = pictures.read(Path("image.png"))
    assert read.sha256 == plain.sha256 and np.array_equal(read.pixels, plain.pixels)


def test_bad_pictures_are_refused_in_one_line(tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    large = encode_png(np.zeros((101, 100, 3), np.uint8))
    noise = encode_png(np.random.default_rng(0).integers(0, 256, (101, 101, 3), dtype=np.uint8))
    for path, reason in (
        (file("a.png", b"GIF89a"), "FORMAT"),
        (file("f.png", b"corpus:"), "NOT_IMAGE"),
        (file("b.png", b""), "NOT_IMAGE"),
        (file("c.png", large), "TOO_MANY_PIXELS"),
        (file("d.png", noise), "TOO_MANY_BYTES"),
        (file("e.png", encode_png(np.zeros((90, 90, 3), np.uint8))[:-40]), "BROKEN"),
    ):
        with pytest.raises(ConfigError, match=rf"^image: no image that can be read \(({reason}): ") as error:
            uploads.read(path, "image", SMALL)
        assert str(tmp_path) not in str(error.value), "a visitor learns no path of the server"
    with pytest.raises(ConfigError, match=r"^image: no picture"):
        uploads.read(None, "image", SMALL)


def test_a_painting_becomes_a_mask_of_the_size_of_the_image() -> None:
    layer = np.zeros((512, 512, 4), np.uint8)
    layer[128:256, 64:192] = 255
    mask, png = uploads.mask(uploads.PAINTED, _png(layer), (64, 64), DEFAULTS)
    expected = np.zeros((64, 64), bool)
    expected[16:32, 8:24] = True
    assert np.array_equal(mask.pixels[..., 0] > 0, expected)
    assert hashlib.sha256(png).hexdigest() == mask.sha256 and np.array_equal(decode_png(png), mask.pixels)
    for nothing in (None, _png(np.zeros((512, 512, 4), np.uint8))):
        with pytest.raises(ConfigError, match=r"^mask: nothing is painted"):
            uploads.mask(uploads.PAINTED, nothing, (64, 64), DEFAULTS)
    with pytest.raises(ConfigError, match=r"^mask: painted on 512 x 512 pixels; expected the shape of 64 x 128\nfix: "):
        uploads.mask(uploads.PAINTED, _png(layer), (64, 128), DEFAULTS)
    half, _ = uploads.mask("half", None, (64, 64), DEFAULTS)
    assert np.array_equal(half.pixels[..., 0] > 0, masks.named("half", 64, 64))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_what_was_sent_reaches_our_decoder_and_our_params_as_it_is() -> None:
    assert components.Number(minimum=1, maximum=9).preprocess(1e9) == 1e9
    assert components.Slider(0, 1).preprocess(7) == 7
    painting = components.easel("Paint", "paint")
    send(painting, "number", b"a layer")
    assert painting.preprocess(EditorData(background=None, layers=[], composite=None, id="number")) == b"a layer"
    assert not painting.blob_storage


def test_paintings_that_nobody_asks_for_do_not_pile_up() -> None:
    painting, layer = components.easel("Paint", "paint"), bytes(2**20)
    for number in range(80):
        send(painting, str(number), layer)
    assert set(painting.blob_storage) == {str(number) for number in range(16, 80)}, "the newest 64 MiB"
    for kind, index in (("layer", 10**9), ("composite", "null"), ("background", "null")):
        send(painting, "other", layer, kind, index)
    assert "other" not in painting.blob_storage, "nothing else is read, and no index makes a long list"


def send(painting: components.Easel, number: str, data: bytes, kind: str = "layer", index: Any = "0") -> None:
    told: Any = {"file": None, "id": number, "type": kind, "index": index}
    painting.accept_blobs(AcceptBlobs.model_construct(data=told, files=[("file", data)]))


def test_there_is_a_tab_for_every_task() -> None:
    assert page.TITLES.keys() <= {answers.GENERATE, *params.names()}
    assert next(answers.told(iter([])))[0] == ("<p>Starting.</p>", None)


def test_a_failure_of_the_program_is_said_in_the_page() -> None:
    def failing() -> Iterator[Any]:
        yield "<p>Step 1 of 2</p>", None
        raise RuntimeError("out of memory at 0x7f")

    found = answers.told(failing())
    texts = [next(found)[0][0] for _ in range(3)]
    assert 'role="alert"' in texts[-1] and "the log of the server says why" in texts[-1] and "0x7f" not in texts[-1]
    with pytest.raises(RuntimeError, match="out of memory"):
        next(found)
    buttons: list[Any] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        buttons += (update[-1] for update in page._updates(failing()))
    assert [button["interactive"] for button in buttons] == [True, True, False], "there is nothing to cancel"


def test_a_small_picture_is_magnified_to_be_painted_on(here: Path) -> None:
    picture = pictures.read(Path("image.png"))
    large = uploads.magnified(picture, (64, 64))
    assert large.shape == (512, 512, 3) and np.array_equal(large[::8, ::8], picture.pixels)


def test_one_paints_on_the_part_of_a_picture_that_is_drawn_from(
    studio: Studio, loaded: pipeline.Pipeline, here: Path
) -> None:
    made = answers.Answers(studio, loaded.drawing, loaded.tasks, ())
    fields = controls.controls(DrawingParams, loaded.drawing.model_dump())
    sizes = [field for field in fields if field.path[0] == "size_px"]

    def shape(height: str, width: str) -> tuple[int, ...]:
        values = dict(zip((size.name for size in sizes), (height, width), strict=True))
        return made.easel("inpaint", "image.png", sizes, values)["background"].shape

    assert shape("", "") == (512, 512, 3) and shape("64", "128") == (256, 512, 3)
    for height, width in (("64", ""), ("60", "64"), ("65536", "65536")):
        with pytest.raises(ConfigError, match=r"^size"):
            shape(height, width)


def test_pictures_to_paint_on_are_decoded_one_after_the_other(studio: Studio, loaded: pipeline.Pipeline) -> None:
    blocks = page.Page(studio, loaded.drawing, loaded.tasks, Examples((), (), ())).blocks()
    painted = next(each for each in blocks.blocks.values() if getattr(each, "elem_id", None) == "inpaint-painted")
    decoding = [each for each in blocks.fns.values() if painted in each.outputs]
    assert len(decoding) == 3, "for the picture and both sides of the size"
    assert {(each.queue, each.concurrency_limit, each.concurrency_id) for each in decoding} == {(True, 1, "easel")}


# Examples and accounts.


def test_examples_are_captions_of_the_corpus_and_guides_those_that_were_brought(here: Path, tmp_path: Path) -> None:
    found = Examples.of(Parts.of(Path()), ["a", "red", "star"])
    assert len(found.prompts) == 6 and found.guides == () and found.words == ("a", "red", "star")
    shutil.copytree(here, tmp_path / "copy")
    trained_data.write_worse(tmp_path / "copy/data", tmp_path / "copy/data/models/guidance/worse")
    assert Examples.of(Parts.of(tmp_path / "copy"), ["x"] * 1000).guides == ("data/models/guidance/worse",)
    shutil.rmtree(tmp_path / "copy/data/captions")
    assert Examples.of(Parts.of(tmp_path / "copy"), None).prompts == ()


def test_an_account_names_all_that_an_image_was_made_from(studio: Studio, here: Path) -> None:
    origin = Origin.read(pngs(studio.draw(of_task(here, "img2img", num_steps=3), ""))[0], "")
    rows = dict(account.rows(origin))
    assert rows["Prompt"] == PROMPT and rows["Task"] == "img2img" and rows["Steps"] == "3"
    assert rows["Sampler"] == "euler_ancestral (eta 1.0)" and rows["Guidance interval"] == "0.0 to 1.0"
    assert rows["Image (SHA-256)"] == hashlib.sha256((here / "image.png").read_bytes()).hexdigest()
    assert {name.split(" ")[1] for name in rows if name.startswith("Model: ")} == set(origin.models)


@pytest.mark.parametrize("choice", ["half", uploads.PAINTED])
def test_the_command_of_an_inpainted_image_can_be_run_with_the_files_beside_it(
    studio: Studio,
    loaded: pipeline.Pipeline,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(studio, "limits", DEFAULTS)
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[8:32, 8:32] = 255
    made = answers.Answers(studio, loaded.drawing, loaded.tasks, ())
    values = {"prompt": PROMPT, "num_images": 1, "image": "image.png", "mask": choice, "painted": _png(layer)}
    *_, (_, gallery) = made.draw("inpaint", [], values, "", [])
    assert gallery is not None
    path, _ = gallery[0]
    command, files, _ = made.explain(path)
    named = {Path(file).name: file for file in files}
    assert set(named) == ({"image.png"} if choice == "half" else {"image.png", "mask.png"})
    words = [named.get(word, word) for word in shlex.split(command)]
    (again,) = written(here, *words[1:-2])
    assert np.array_equal(decode_png(again), decode_png(Path(path).read_bytes()))


@pytest.mark.parametrize("prompt", ['it\'s "red"; rm -rf $HOME', "-x", "--help", "a\nb", ""])
def test_a_command_says_any_prompt(studio: Studio, here: Path, loaded: pipeline.Pipeline, prompt: str) -> None:
    (png,) = pngs(studio.draw(of_text(prompt=prompt, negative_prompt=prompt, num_steps=1), ""))
    words = shlex.split(account.command(Origin.read(png, ""), loaded.drawing, loaded.tasks))
    place = words.index("pictures")
    assert written(here, *words[1:place], "out", *words[place + 1 :]) == [png]


# The server.


@pytest.fixture(scope="module")
def url(root: Path, loaded: pipeline.Pipeline) -> Iterator[str]:
    """A page that is served, and takes at most two requests that wait."""
    limits = replace(DEFAULTS, num_waiting=2, file_seconds=600)
    with served(root, loaded, server.Address("127.0.0.1", 0, None), limits) as found:
        yield found


@contextmanager
def served(root: Path, loaded: pipeline.Pipeline, address: server.Address, limits: Limits) -> Iterator[str]:
    with server.bound(address) as listening, server.application(Parts.of(root), lambda: loaded, address, limits) as app:
        running = server.uvicorn_server(app)
        thread = threading.Thread(target=lambda: running.run(sockets=[listening]))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": PATIENCE_SECONDS})


def asked(client: Client, task: str, **values: Any) -> Any:
    """What the page answers if a visitor changes these controls of a tab and presses its button."""
    empty = {
        parameter["parameter_name"]: None
        for parameter in api_of(client, task)
        if not parameter["parameter_has_default"]
    }
    return client.submit(api_name=f"/{task}", **{**empty, "prompt": PROMPT, "shown_before": [], **values})


def api_of(client: Client, task: str) -> list[dict[str, Any]]:
    api: Any = client.view_api(return_format="dict", print_info=False)
    return api["named_endpoints"][f"/{task}"]["parameters"]


def test_the_gallery_holds_the_bytes_that_ldm_writes(client: Client, url: str, here: Path) -> None:
    status, gallery, *_ = asked(client, "generate", num_images=3, seed=5, num_steps=3, guidance_scale=4).result()
    assert "3 images made." in status and len(gallery) == 3
    expected = written(
        here, "generate", PROMPT, "--num-images", "3", *["--seed", "5", "--num-steps", "3", "--guidance-scale", "4"]
    )
    assert [Path(shown["image"]).read_bytes() for shown in reversed(gallery)] == expected, "the newest comes first"
    assert gallery[0]["caption"] == f"{PROMPT} (seed 5, image 3)"


def test_the_program_of_the_document_draws(url: str) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/web.md").read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(program.replace("http://127.0.0.1:7860", url), found)
    assert "1 image made." in found["status"] and found["gallery"][0]["caption"] == f"{PROMPT} (seed 3)"


def test_a_task_takes_pictures_and_a_mask(client: Client, here: Path) -> None:
    values = {"image": handle_file("image.png"), "mask": "half", "num_steps": 2, "num_resamplings": 1}
    _, gallery, *_ = asked(client, "inpaint", **values).result()
    made = decode_png(Path(gallery[0]["image"]).read_bytes())
    before = decode_png(Path("image.png").read_bytes())
    assert np.array_equal(made[:, :32], before[:, :32]) and not np.array_equal(made[:, 32:], before[:, 32:])


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("generate", {"num_steps": 0}, "num_steps: found 0; expected an integer >= 1 and <= 1000\nfix: "),
        ("generate", {"num_images": None}, "number of images: found nothing; expected an integer >= 1\nfix: "),
        ("generate", {"num_images": 2.6}, "number of images: found 2.6; expected an integer >= 1\nfix: "),
        ("generate", {"num_images": 1e9}, "number of images: 1000000000 images; expected 1 to 32\nfix: "),
        ("generate", {"guidance_scale": 1e300}, "guidance_scale: found 1e+300; expected a number"),
        ("img2img", {}, "image: no picture; expected a PNG, JPEG or WebP file\nfix: choose one as image"),
        ("img2img", {"image": "params.yaml"}, "image: no image that can be read (NOT_IMAGE: "),
        ("inpaint", {"image": "image.png"}, "mask: nothing is painted; expected white where to draw\nfix: "),
    ],
)
def test_a_mistake_is_told_in_the_page_in_our_form(
    client: Client, here: Path, task: str, values: dict[str, Any], message: str
) -> None:
    sent = {name: handle_file(value) if isinstance(value, str) else value for name, value in values.items()}
    job = asked(client, task, **sent)
    with pytest.raises(AppError) as error:
        job.result()
    assert str(error.value).startswith(message)
    shown = html.unescape(re.sub("<[^>]*>", "\n", job.outputs()[-1][0]))
    assert [line for line in shown.splitlines() if line] == str(error.value).splitlines()
    assert 'role="alert"' in job.outputs()[-1][0]


def test_a_file_whose_time_is_over_is_said_and_so_is_a_full_disk(
    loaded: pipeline.Pipeline, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, made = str(tmp_path / "gone.png"), answers.Answers(studio, loaded.drawing, loaded.tasks, ())
    for ask in (
        lambda: uploads.read(gone, "image", SMALL),
        lambda: made.explain(gone),
        lambda: list(made.replay(gone, "")),
    ):
        with pytest.raises(ConfigError, match=r"^image: a file that was deleted meanwhile"):
            ask()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "large").write_bytes(bytes(1000))
    monkeypatch.setattr(studio, "limits", replace(SMALL, disk_bytes=1000))
    with pytest.raises(ConfigError, match=r"^disk of the page: full; expected room for an image"):
        list(made.draw(answers.GENERATE, [], {}, "", []))


def test_a_full_queue_is_said_and_the_others_are_served(client: Client, url: str) -> None:
    client_of = {
        number: Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": PATIENCE_SECONDS})
        for number in range(2)
    }
    first = asked(client_of[0], "generate", num_steps=400)
    while first.status().code.name != "ITERATING":
        threading.Event().wait(0.05)
    waiting = [asked(client_of[1], "generate", num_steps=1, seed=seed) for seed in range(2)]
    while any(job.status().code.name == "STARTING" for job in waiting):  # they join from threads of their own
        threading.Event().wait(0.05)
    config = httpx.get(f"{url}/config", timeout=PATIENCE_SECONDS).json()
    number = next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == "generate")
    while (answer := _joined(url, number)).status_code == 200:
        threading.Event().wait(0.05)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "60"
    assert (
        answer.json()["detail"]
        == "the queue of the model is full; expected room for one more\nfix: ask again in a minute"
    )
    press = {"data": [], "session_hash": client_of[0].session_hash}
    assert "Cancelled." in httpx.post(f"{url}/gradio_api/run/cancel", json=press, timeout=PATIENCE_SECONDS).text
    assert [len(job.result()[1]) for job in waiting] == [1, 1]


def _joined(url: str, number: int) -> httpx.Response:
    return httpx.post(
        f"{url}/gradio_api/queue/join",
        json={"data": [], "fn_index": number, "session_hash": "nobody"},
        timeout=PATIENCE_SECONDS,
    )


def test_no_path_of_the_server_is_served(url: str, client: Client, here: Path) -> None:
    _, gallery, *_ = asked(client, "generate", num_steps=1).result()
    mine, secret = Path(gallery[0]["image"]), here / "params.yaml"
    for path in (
        *("/etc/passwd", str(secret), "params.yaml", f"{mine.parent}/../../../../../../..{secret}", "../params.yaml"),
        *("http://example.org/", "https://127.0.0.1/", "file:///etc/passwd", "%2e%2e/params.yaml", "~/.ssh/id_rsa"),
    ):
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy=", "/static/", "/assets/"):
            answer = httpx.get(f"{url}{route}{path}", follow_redirects=False, timeout=PATIENCE_SECONDS)
            assert answer.status_code in (403, 404), (route, path, answer.status_code)
            assert b"sampler" not in answer.content and b"root:" not in answer.content


@pytest.mark.parametrize("field", ["gallery", "generate-prompt", "img2img-image", "inpaint-painted"])
def test_no_path_that_is_sent_is_read(url: str, here: Path, field: str) -> None:
    config = httpx.get(f"{url}/config", timeout=PATIENCE_SECONDS).json()
    props = {component["id"]: component["props"] for component in config["components"]}
    called = next(
        each
        for each in config["dependencies"]
        if each["api_name"] == (field.split("-")[0].replace("gallery", "generate"))
    )
    secret = str(here / "image.png")  # a picture, which would be drawn from
    for path, meta in ((secret, {"_type": "gradio.FileData"}), (secret, {}), ("http://127.0.0.1:9/a.png", {})):
        file = {"path": path, "meta": meta}
        nested = {"gallery": [{"image": file, "caption": ""}], "inpaint-painted": {"layers": [file]}}.get(field, file)
        data = [nested if (own := props[n]).get("elem_id") == field else own.get("value") for n in called["inputs"]]
        press = {"data": data, "fn_index": called["id"], "session_hash": "stranger"}
        assert httpx.post(f"{url}/gradio_api/queue/join", json=press, timeout=PATIENCE_SECONDS).status_code == 200
        told = httpx.get(
            f"{url}/gradio_api/queue/data", params={"session_hash": "stranger"}, timeout=PATIENCE_SECONDS
        ).text
        assert "a file that nobody gave to this page" in told, told
        assert "gradio_api/file=" not in told


def test_a_password_opens_what_is_the_visitors(root: Path, loaded: pipeline.Pipeline) -> None:
    password = "correct horse battery"
    with (
        served(root, loaded, server.Address("127.0.0.1", 0, password), DEFAULTS) as url,
        httpx.Client(timeout=PATIENCE_SECONDS) as visitor,
    ):
        api = f"{url}/gradio_api"
        asked = {
            f"{url}/config": visitor.get,
            **{f"{api}/{path}": visitor.get for path in ("info", "queue/data?session_hash=x", "call/generate/x")},
            **{f"{api}/{path}": visitor.post for path in ("upload", "queue/join", "run/cancel", "call/generate")},
            f"{api}/component_server": visitor.post,
        }
        assert {path: ask(path).status_code for path, ask in asked.items()} == dict.fromkeys(asked, 401)
        for given, status in (("wrong", 400), (password, 200)):
            form = {"username": server.USER, "password": given}
            assert visitor.post(f"{url}/login", data=form).status_code == status
            assert visitor.get(f"{url}/config").status_code == (200 if status == 200 else 401)


def test_who_guesses_passwords_has_to_wait(root: Path, loaded: pipeline.Pipeline) -> None:
    address, limits = server.Address("127.0.0.1", 0, "correct horse battery"), Limits(num_guesses=3)
    with served(root, loaded, address, limits) as url, httpx.Client(timeout=PATIENCE_SECONDS) as visitor:
        login = f"{url}/login"
        forms = [{"username": server.USER, "password": given} for given in ("a", address.password, "b", "c", "d")]
        answers = [visitor.post(login, data=form) for form in forms]
        assert [answer.status_code for answer in answers] == [400, 200, 400, 400, 429], "a right one does not count"
        assert "too many wrong passwords" in answers[-1].text and answers[-1].headers["retry-after"] == "600"
        assert visitor.get(url).status_code == 200, "the form itself is still there"


# Files of visitors.


def test_what_is_old_is_deleted_and_so_are_folders_that_are_empty_for_as_long(tmp_path: Path) -> None:
    made, broken_off, new = tmp_path / "hash/made.png", tmp_path / "tmpabc", tmp_path / "other/new.png"
    for path in (made, broken_off, new):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for path in (made, broken_off):
        os.utime(path, (0, 0))
    server.sweep(tmp_path, 60)
    assert set(tmp_path.rglob("*")) == {made.parent, new.parent, new}, "somebody may just be writing into the folder"
    os.utime(made.parent, (0, 0))
    os.utime(new.parent, (0, 0))
    server.sweep(tmp_path, 60)
    assert set(tmp_path.rglob("*")) == {new.parent, new}


def test_files_of_visitors_are_gone_when_their_time_is_over(root: Path, loaded: pipeline.Pipeline) -> None:
    limits = replace(DEFAULTS, file_seconds=1)
    with served(root, loaded, server.Address("127.0.0.1", 0, None), limits) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        client = Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": PATIENCE_SECONDS})
        job = asked(client, "generate", num_steps=1)
        wait_until(lambda: list(folder.rglob("*.png")))
        job.exception(PATIENCE_SECONDS)
        (folder / "tmpabc").write_bytes(b"an upload that was broken off")
        wait_until(lambda: not list(folder.iterdir()))


def wait_until(is_done: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_images_whose_time_is_over_leave_the_gallery(
    loaded: pipeline.Pipeline, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    made = answers.Answers(studio, loaded.drawing, loaded.tasks, ())
    (tmp_path / "kept.png").touch()
    before = [(str(tmp_path / name), "") for name in ("gone.png", "kept.png")]
    *_, (_, gallery) = made.draw(answers.GENERATE, [], {"prompt": PROMPT, "num_images": 1}, "", before)
    assert gallery is not None and len(gallery) == 2 and gallery[1] == before[1]
