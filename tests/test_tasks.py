"""Tasks from end to end on a tiny pipeline: what they keep, what replays, what is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.core.errors import ConfigError
from ldm.core.images import decode_png
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.tools import cli, pipeline
from ldm.tools.tasks import draw, masks, params
from tests.import_closure import ROOT

PROMPT = "a red star"
STEPS: dict[str, Any] = {"num_steps": 4, "sampler": {"kind": "ddim", "eta": 1}}


@pytest.fixture(scope="module")
def root(root: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "image.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 20:50] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(root)
    yield root
    shutil.rmtree(root / "out", ignore_errors=True)


def image(root: Path) -> torch.Tensor:
    return torch.from_numpy(decode_png((root / "image.png").read_bytes()).copy()).permute(2, 0, 1)


def test_img2img_goes_from_the_round_trip_to_an_image_of_its_own(loaded: pipeline.Pipeline, root: Path) -> None:
    generator, path = loaded.generator, root / "image.png"
    with torch.no_grad():
        round_trip = generator.decode(generator.encode(image(root)[None]))
    assert torch.equal(loaded.img2img(path, PROMPT, strength=0, **STEPS), round_trip)
    assert torch.equal(loaded.img2img(path, PROMPT, strength=1, **STEPS), loaded(PROMPT, **STEPS))
    half = loaded.img2img(image(root), PROMPT, strength=0.5, **STEPS)
    assert not torch.equal(half, round_trip) and not torch.equal(half, loaded(PROMPT, **STEPS))
    assert not torch.equal(loaded.img2img(path, "a blue cross", strength=0.5, guidance_scale=3, **STEPS), half)


@pytest.mark.parametrize("mask", ["mask.png", "thin", "wide", "half", "expand"])
def test_inpaint_keeps_what_is_known(loaded: pipeline.Pipeline, here: Path, mask: str) -> None:
    (drawn,) = loaded.inpaint("image.png", mask, PROMPT, **STEPS)
    read = np.asarray(Image.open(mask)) > 0 if mask == "mask.png" else masks.named(mask, 64, 64)
    unknown = torch.from_numpy(read.copy()).expand(3, 64, 64)
    assert torch.equal(drawn[~unknown], image(here)[~unknown])
    assert not torch.equal(drawn[unknown], image(here)[unknown])


@pytest.mark.parametrize(("column", "is_drawn"), [(15, False), (16, True), (79, True), (80, False)])
def test_a_mask_must_be_white_within_the_centre_square(loaded: pipeline.Pipeline, column: int, is_drawn: bool) -> None:
    wide = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 96), dtype=np.uint8))
    mask = torch.zeros(3, 64, 96, dtype=torch.uint8)
    mask[:, :, column] = 255
    if is_drawn:
        (drawn,) = loaded.inpaint(wide, mask, PROMPT, **STEPS)
        changed = (drawn != wide[:, :, 16:80]).any(0).any(0)
        assert changed.nonzero().flatten().tolist() == [column - 16]
    else:
        with pytest.raises(ConfigError, match=r"mask: white only beside the part .*\nfix: crop image and mask first"):
            loaded.inpaint(wide, ["half", mask], [PROMPT] * 2, **STEPS)


def test_outpaint_upscale_and_alternate_lines_keep_what_is_known(loaded: pipeline.Pipeline, root: Path) -> None:
    path = root / "image.png"
    (canvas,) = loaded.outpaint(path, PROMPT, margin_px=16, num_resamplings=2, **STEPS)
    assert canvas.shape == (3, 96, 96) and torch.equal(canvas[:, 16:80, 16:80], image(root))
    (large,) = loaded.upscale(image(root)[:, :32, 32:], PROMPT, factor=2, num_resamplings=2, **STEPS)
    assert large.shape == (3, 64, 64) and torch.equal(large[:, ::2, ::2], image(root)[:, :32, 32:])
    (lines,) = loaded.alternate_lines(path, PROMPT, num_resamplings=2, **STEPS)
    assert torch.equal(lines[:, ::2], image(root)[:, ::2]) and not torch.equal(lines[:, 1::2], image(root)[:, 1::2])


@pytest.mark.parametrize("factor", [3, 48])
def test_a_factor_that_does_not_divide_the_image_is_refused(loaded: pipeline.Pipeline, root: Path, factor: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"factor: {factor}; expected .* divides 64 and 64\n.*one of 2, 4, 8, 16, 32, 64"
    ):
        loaded.upscale(image(root), PROMPT, factor=factor, **STEPS)


def test_an_image_does_not_depend_on_its_batch(loaded: pipeline.Pipeline, root: Path) -> None:
    prompts, images = [PROMPT, "a blue cross"], torch.stack([image(root), image(root).flip(1)])
    both = loaded.inpaint(images, ["half", "wide"], prompts, **STEPS).int()
    assert int((both - loaded.inpaint(images, ["half", "wide"], prompts, batch_size=1, **STEPS).int()).abs().max()) <= 1


MASKED = ("inpaint",)
SMALL = ["--num-steps", "4", "--sampler", "ddim", "--eta", "1", "--seed", "3"]


@pytest.mark.parametrize("task", [name for name in params.names() if name != "interpolate"])
def test_every_task_is_a_command_whose_images_replay(here: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    mask = ["--mask", "mask.png"] if task in MASKED else []
    verb, given = task.replace("_", "-"), ["--image", "image.png", *mask]
    fast = ["--num-resamplings", "2"] if issubclass(params.class_of(task), params.RepaintParams) else []
    call = [verb, PROMPT, "a cross", *given, "--output", "out", *SMALL, *fast]
    assert cli.main(call) == 0, capsys.readouterr().err
    origin = Origin.read(Path("out/0001.png").read_bytes(), "")
    assert (origin.task, origin.prompt, origin.prompt_number, origin.settings["seed"]) == (task, "a cross", 1, 3)
    assert origin.pictures.keys() == {"image", *(["mask"] if mask else [])}
    assert cli.main(["replay", "out/0001.png", *given, "--output", "again.png", "--overwrite"]) == 0
    assert Path("again.png").read_bytes() == Path("out/0001.png").read_bytes()
    refused = [[], ["--image", "mask.png", *mask], given[:2] if mask else [*given, "--mask", "mask.png"]]
    capsys.readouterr()
    for others in refused:
        assert cli.main(["replay", "out/0001.png", *others]) == 2
        assert capsys.readouterr().err.startswith(("out/0001.png: ", "mask: "))
    Path("out/0000.png").write_text("mine")
    weak = ["--strength", "0"] if "strength" in params.class_of(task).model_fields else []
    assert cli.main([*call, "--num-steps", "1", "--num-resamplings", "1"] if fast else [*call, *weak]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [f"000{i}.png" for i in range(4)]
    assert Path("out/0000.png").read_text() == "mine"


@pytest.mark.parametrize("name", ["mask", "last_image"])
def test_a_picture_that_is_too_much_is_named_as_its_option(root: Path, name: str) -> None:
    (plain,) = Origin.of_batch([PROMPT], [0], {}, {})
    with pytest.raises(ConfigError, match=f"expected none\nfix: leave --{name.replace('_', '-')} out$"):
        draw.again(plain, {name: draw.pictures.read(root / "image.png")}, "0000.png")


def test_an_image_of_a_file_replays_from_no_other(loaded: pipeline.Pipeline, root: Path) -> None:
    (png,) = loaded.task_pngs("img2img", PROMPT, {"image": image(root)}, strength=0.5, **STEPS)
    origin = Origin.read(png, "")
    for changes, message in [
        ({"task": "dreaming"}, "an image of task 'dreaming'; expected one of img2img, inpaint"),
        ({"task_settings": {"strength": 7}}, "a task with strength: found 7, where legal is a number >= 0 and <= 1"),
    ]:
        given = {"image": draw.pictures.row({"image": image(root)})["image"]}
        with pytest.raises(Exception, match=message):
            loaded.replay(origin.model_copy(update=changes), given)
        assert torch.equal(loaded.replay(origin, given), torch.from_numpy(decode_png(png).copy()).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["img2img", "x", "--image", "image.png", "--strength", "2"], "strength: found 2.0; expected a number >= 0"),
        (["img2img", "x", "--image", "image.png", "--num-steps", "0"], "num_steps: found 0; expected"),
        (["img2img", "x", "--image", "params.yaml"], "params.yaml: no image that can be read (NOT_IMAGE"),
        (["img2img", "x", "--image", "nowhere.png"], "nowhere.png: no such file; expected"),
        (["img2img", "--image", "image.png"], "ldm img2img: no prompt"),
        (["inpaint", "x", "--image", "image.png", "--mask", "tall.png"], "tall.png: 80 x 64 pixels; expected 64 x 64"),
        (["inpaint", "x", "--image", "image.png", "--mask", "black.png"], "black.png: a mask without any white"),
        (
            ["inpaint", "x", "--image", "image.png", "--mask", "half", "--num-steps", "3", "--jump-length", "3"],
            "jump_length: 3 with 3 steps; expected less than num_steps",
        ),
        (
            ["inpaint", "x", "--image", "image.png", "--mask", "half", "--num-resamplings", "0"],
            "num_resamplings: found",
        ),
        (["upscale", "x", "--image", "image.png", "--factor", "1"], "factor: found 1; expected"),
        (
            ["img2img", "x", "--image", "image.png", "--sampler", "dpm_solver_pp_2m", "--eta", "0.5"],
            "--eta: sampler dpm_solver_pp_2m, which has",
        ),
        (
            ["img2img", "x", "--image", "image.png", "--sampler", "ddim", "--eta", "3"],
            "sampler.eta: found 3.0; expected",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "Pipeline", None)
    for name, size, value in (("image.png", (64, 64), 9), ("tall.png", (64, 80), 255), ("black.png", (64, 64), 0)):
        Image.new("L", size, value).save(name)
    assert cli.main([*arguments, "--output", "out"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(message) and lines[1].startswith("fix: "), lines
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--margin-px", "12"], "margin_px: 12; expected a multiple of 8"),
        (["--stride-px", "12"], "stride_px: 12; expected a multiple of 8"),
        (["--margin-px", "64", "--stride-px", "72"], "stride_px: 72; expected at most 64, the side of a window"),
        (
            ["--margin-px", "64", "--stride-px", "72", "--size", "96", "64"],
            "stride_px: 72; expected at most 64, the side of a window",
        ),
    ],
)
def test_a_border_that_cuts_cells_or_leaves_gaps_is_refused_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["outpaint", "x", "--image", "image.png", "--output", "out", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-2].startswith(message)
    assert not Path("out").exists()


def test_windows_that_only_touch_leave_no_gap(loaded: pipeline.Pipeline, root: Path) -> None:
    (canvas,) = loaded.outpaint(image(root), PROMPT, margin_px=64, stride_px=64, num_resamplings=1, **STEPS)
    assert torch.equal(canvas[:, 64:128, 64:128], image(root))
    assert len(canvas[:, :64, :64].unique()) > 2, "drawn, not the bytes of a mean over no window"


def test_settings_of_tasks_and_drawings_have_different_names(loaded: pipeline.Pipeline, root: Path) -> None:
    for name in params.names():
        assert not params.class_of(name).model_fields.keys() & DrawingParams.model_fields.keys()
    with pytest.raises(ConfigError, match="strenght: unknown key"):
        loaded.img2img(root / "image.png", PROMPT, strenght=1)
