import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel

from ldm.core.errors import IntegrityError
from ldm.core.images import decode_png, encode_png
from ldm.sampling import samples
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.tools import cli, pipeline
from ldm.tools.check import check
from ldm.tools.cli import __main__ as program
from ldm.tools.cli import seeds
from tests import stage_scripts, trained_data
from tests.import_closure import ROOT


class FakePipeline:
    """Stands in for the trained artefacts: a memory of what it was asked."""

    asked: list[tuple[list[str], int, dict]] = []
    stops_after = 10**6

    @classmethod
    def load(cls, directory=".", device=None):
        return cls()

    def unknown_words(self, texts):
        return [word for text in texts for word in text.split() if word.startswith("un")]

    def pngs(self, prompts, start_number=0, **settings):
        self.asked.append((prompts, start_number, settings))
        for i, prompt in enumerate(prompts):
            if i == self.stops_after:
                raise KeyboardInterrupt
            yield prompt.encode()


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[tuple[list[str], int, dict]]:
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "Pipeline", FakePipeline)
    monkeypatch.setattr(FakePipeline, "asked", [])
    return FakePipeline.asked


def test_generate_writes_one_png_per_prompt_and_says_which(asked, capsys):
    arguments = ["generate", "a cat", "two\nlines\x1b[2J", "--output", "out", "--num-images", "2", "--seed", "5"]
    assert cli.main(arguments) == 0
    assert asked == [(["a cat", "a cat", "two\nlines\x1b[2J", "two\nlines\x1b[2J"], 0, {"seed": 5})]
    said = capsys.readouterr()
    texts = ["a cat", "a cat", "two\\nlines\\x1b[2J", "two\\nlines\\x1b[2J"]
    assert said.out.splitlines() == [f"out/000{i}.png  {text}" for i, text in enumerate(texts)]
    assert said.err == "", "no hint, and no progress where there is no terminal"
    assert Path("out/0003.png").read_text() == "two\nlines\x1b[2J"


def test_generate_passes_on_what_it_is_told_only(asked):
    options = ["--guidance-scale", "2.5", "--num-steps", "9", "--sampler", "ddim,eta=0.5", "--start-number", "7"]
    assert cli.main(["generate", "x", "--output", "out", *options]) == 0
    assert asked == [(["x"], 7, {"guidance_scale": 2.5, "num_steps": 9, "sampler": {"kind": "ddim", "eta": 0.5}})]
    assert [path.name for path in Path("out").iterdir()] == ["0007.png"]


def test_generate_keeps_what_is_there_unless_it_may_overwrite(asked, capsys):
    Path("out").mkdir()
    Path("out/0000.png").write_text("mine")
    assert cli.main(["generate", "a", "b", "--output", "out"]) == 0
    assert cli.main(["generate", "c", "--output", "out"]) == 0
    assert capsys.readouterr().out.splitlines() == ["out/0001.png  a", "out/0002.png  b", "out/0003.png  c"]
    assert cli.main(["generate", "d", "--output", "out", "--overwrite"]) == 0
    assert "".join(path.read_text() for path in sorted(Path("out").iterdir())) == "dabc"


def test_prompts_come_from_a_file_or_standard_input(asked, monkeypatch):
    Path("p.txt").write_text("a\n\nb\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"c\n")))
    for name in ("p.txt", "-"):
        assert cli.main(["generate", "--prompts-file", name, "--num-images", "2", "--output", "out"]) == 0
    assert [prompts for prompts, _, _ in asked] == [["a", "a", "b", "b"], ["c", "c"]]


def test_every_prompt_is_drawn_with_each_seed_of_a_range(asked, capsys):
    arguments = ["generate", "a", "b", "--seed", "3-4,9", "--output", "out"]
    assert cli.main(arguments) == 0
    assert asked == [(["a", "b"], 0, {"seed": seed}) for seed in (3, 4, 9)]
    assert capsys.readouterr().out.splitlines() == [
        f"out/000{i}.png  {text}  (seed {seed})"
        for i, (seed, text) in enumerate((seed, text) for seed in (3, 4, 9) for text in "ab")
    ]
    assert cli.main(["generate", "a", "--seed", "5-5", "--output", "out"]) == 0
    assert capsys.readouterr().out == "out/0006.png  a\n", "with one seed there is nothing to tell apart"


@pytest.mark.parametrize(
    ("text", "found"),
    [("7", [7]), ("3-7", [3, 4, 5, 6, 7]), ("1,4-6", [1, 4, 5, 6]), ("2,1-3", [2, 1, 3]), ("-1", [-1])],
)
def test_seeds_are_numbers_and_ranges(text, found):
    assert seeds.read(text) == found
    assert seeds.read(seeds.written(found)) == found
    assert seeds.written([3, 4, 5, 9, 1]) == "3-5,9,1"


@pytest.mark.parametrize("text", ["", "x", "7-3", "1-", "0-1000000", "0-999999,2000000", "1.5", "1--2"])
def test_what_names_no_seeds_is_refused(capsys, text):
    with pytest.raises(SystemExit) as error:
        cli.main(["generate", "x", "--output", "o", "--seed", text])
    assert error.value.code == 2 and "argument --seed: found " in capsys.readouterr().err


def test_sizes_are_passed_on(asked):
    assert cli.main(["generate", "x", "--output", "out", "--size", "64", "96"]) == 0
    assert asked[0][2] == {"size_px": [64, 96]}


def test_one_png_goes_to_a_pipe_and_nothing_else_does(asked, monkeypatch, capfdbinary):
    assert cli.main(["generate", "an unseen \u2603", "--output", "-"]) == 0
    said = capfdbinary.readouterr()
    assert said.out == "an unseen \u2603".encode() and said.err.startswith(b"hint: ")
    assert not Path("-").exists()
    for arguments in (["x", "y"], ["x", "--num-images", "2"], ["x", "--seed", "1-2"]):
        assert cli.main(["generate", *arguments, "--output", "-"]) == 2
        assert capfdbinary.readouterr().err.startswith(b"--output: -, and 2 images; expected one image")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert cli.main(["generate", "x", "--output", "-"]) == 2
    assert b"-, and a terminal; expected" in capfdbinary.readouterr().err
    assert len(asked) == 1, "refused before anything is drawn"


def test_prompts_are_printed_as_they_are_written(asked, capsys):
    text = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f4bb \u5706\u3000\u00a0x"
    assert cli.main(["generate", text, "\u202egnp.exe", "\x07", "--output", "out"]) == 0
    lines = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [text, "\\u202egnp.exe", "\\x07"], "what turns a line around, or rings, is escaped"


def test_a_hint_names_words_that_no_caption_has(asked, capsys):
    assert cli.main(["generate", "a unicorn", "--output", "out"]) == 0
    assert capsys.readouterr().err == "hint: no training caption has: unicorn\n"
    assert cli.main(["generate", " ".join(f"un{i}" for i in range(20)), "--output", "out"]) == 0
    assert capsys.readouterr().err.endswith("un10, un11 and 8 more\n")


def test_ctrl_c_says_what_is_written(asked, monkeypatch, capsys):
    monkeypatch.setattr(FakePipeline, "stops_after", 2)
    assert cli.main(["generate", "x", "--num-images", "5", "--output", "out", "--start-number", "4"]) == 130
    said = capsys.readouterr()
    assert said.out.splitlines() == ["out/0004.png  x", "out/0005.png  x"]
    assert said.err.startswith("out: stopped by Ctrl-C, 2 of 5 images are written; ") and "--start-number 6" in said.err
    monkeypatch.setattr(FakePipeline, "stops_after", 0)
    assert cli.main(["generate", "x", "--output", "new"]) == 130
    capsys.readouterr()
    monkeypatch.setattr(FakePipeline, "stops_after", 1)
    assert cli.main(["generate", "x", "y", "--output", "two", "--seed", "3-6,9"]) == 130
    said = capsys.readouterr().err
    assert "1 of 10 images are written" in said
    assert "fix: for the others, give --seed 3-6,9; the first 1 of seed 3 are there already" in said
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x", "--output", "params.yaml/x"], 5, "params.yaml/x: no file can be made there"),
        (["x", "--output", "/proc/x"], 5, "/proc/x: no file can be made there"),
        (["x", "--output", "params.yaml"], 2, "params.yaml: a file; expected a folder"),
        (["--output", "o"], 2, "ldm generate: no prompt"),
        (["x", "--prompts-file", "p.txt", "--output", "o"], 2, "ldm generate: prompts as arguments and in a file"),
        (["--prompts-file", "nowhere.txt", "--output", "o"], 2, "nowhere.txt: cannot be read"),
        (["a \udcff", "--output", "o"], 2, "prompt 1: 'a "),
        (["x", "--output", "o", "--seed", "-1"], 2, "seed: found -1; expected an integer >= 0"),
        (["x", "--output", "o", "--guidance-scale", "nan"], 2, "guidance_scale: found NaN; expected"),
        (["x", "--output", "o", "--guidance-scale", "1e400"], 2, "guidance_scale: found Infinity; expected"),
        (["x", "--output", "o", "--num-steps", "0"], 2, "num_steps: found 0; expected"),
        (["x", "--output", "o", "--sampler", "unheard"], 2, "sampler"),
        (["x", "--output", "o", "--sampler", "ddim,eta=2"], 2, "sampler.eta: found 2; expected"),
        (["x", "--output", "o", "--sampler", "ddim"], 2, "sampler.eta: missing; expected a number"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(asked, monkeypatch, capsys, arguments, code, message):
    monkeypatch.setattr(pipeline, "Pipeline", None)
    assert cli.main(["generate", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(message) and lines[1].startswith("fix: ")
    assert {path.name for path in Path().iterdir()} == {"params.yaml", "paths.yaml"}


def test_a_folder_is_not_left_behind_when_there_are_no_models(tmp_path, monkeypatch):
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "x", "--output", "new/out"]) == 4
    assert not Path("new").exists()


@pytest.mark.parametrize("value", ["two", "0", "1.5", "9999999"])
def test_a_count_that_is_none_is_named_in_words(capsys, value):
    with pytest.raises(SystemExit) as error:
        cli.main(["generate", "x", "--output", "o", "--num-images", value])
    expected = f"argument --num-images: found '{value}'; expected a whole number from 1 to 1000000\n"
    assert error.value.code == 2 and capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["generate", "--help"], ["replay", "--help"]])
def test_version_and_help(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    said = capsys.readouterr().out
    assert error.value.code == 0
    assert (
        re.match(r"ldm \d+\.\d+", said) if arguments == ["--version"] else re.search("example.*ldm ", said, re.DOTALL)
    )


def unions(model: type[BaseModel], key: str) -> Iterator[tuple[str, list[type[BaseModel]]]]:
    """Dotted keys of values that are one of several params models, with these models."""
    for name, field in model.model_fields.items():
        members = list(models_of(field.annotation))
        kinds = [member for member in members if "kind" in member.model_fields]
        if kinds:
            yield f"{key}.{name}", kinds
        for member in members:
            yield from unions(member, f"{key}.{name}")


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_of(inner)


def kind_of(member: type[BaseModel]) -> str:
    return get_args(member.model_fields["kind"].annotation)[0]


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return capsys.readouterr().out


def test_help_names_every_kind_of_every_union(capsys: pytest.CaptureFixture[str]) -> None:
    found = [union for name, section in check.SECTIONS.items() for union in unions(section, name)]
    keys = {key for key, _ in found}
    assert {"prepare.corpus", "sample.drawing.sampler", "train_unet.diffusion.loss_weighting"} <= keys
    lines = dict(re.findall(r"^  ([\w.]+): (.+)$", help_of("check", capsys), re.MULTILINE))
    assert lines.keys() == keys
    for key, members in found:
        assert {kind_of(member) for member in members} <= set(lines[key].split(", "))


def test_help_of_generate_names_every_sampler_with_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    words = help_of("generate", capsys).replace("\n", " ").replace(", ", " ").split()
    samplers = dict(unions(DrawingParams, "drawing"))["drawing.sampler"]
    assert len(samplers) > 1
    for sampler in samplers:
        keys = [f"{key}=VALUE" for key in sampler.model_fields if key != "kind"]
        assert ",".join([kind_of(sampler), *keys]) in words


@pytest.mark.parametrize("arguments", [["generate", "x"], ["generate", "x", "--output", "o", "--num-images", "0"]])
def test_wrong_arguments_end_with_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2 and "usage: ldm" in capsys.readouterr().err


def test_a_users_mistake_costs_its_lines_and_an_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check"]) == 2
    assert capsys.readouterr().err.startswith("params.yaml: no such file; expected a params file\nfix: ")


def test_the_module_is_the_command():
    assert program.main is cli.main


def test_debugging_keeps_the_traceback(tmp_path, monkeypatch):
    def refuse(directory=".", device=None):
        raise IntegrityError("here", "this", "that", "do so")

    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.Pipeline, "load", refuse)
    assert cli.main(["generate", "x", "--output", str(tmp_path)]) == 4
    monkeypatch.setenv("LDM_DEBUG", "1")
    with pytest.raises(IntegrityError):
        cli.main(["generate", "x", "--output", str(tmp_path)])


def test_check_validates_the_file_that_is_named(tmp_path, capsys):
    assert cli.main(["check", str(ROOT / "params.yaml")]) == 0
    assert "shapes, 64 px" in capsys.readouterr().out
    wrong = (ROOT / "params.yaml").read_text().replace("num_grid_rows:", "num_grid_row:")
    (tmp_path / "mine.yaml").write_text(wrong)
    assert cli.main(["check", str(tmp_path / "mine.yaml")]) == 2
    assert "sample.num_grid_row: unknown key" in capsys.readouterr().err


def test_help_and_check_load_no_torch():
    program = f"""
import sys
from ldm.tools.cli import main
assert main(["check", "{ROOT / "params.yaml"}"]) == 0
try:
    main(["generate", "--help"])
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def check_refusals(png: bytes, monkeypatch, capsys) -> None:
    """All of these end before a model is loaded."""
    with Image.open(io.BytesIO(png)) as image:
        info = PngInfo()
        info.add_itxt("ldm", image.info["ldm"])
        for mode in ("RGBA", "P"):
            image.convert(mode).save(f"{mode}.png", pnginfo=info)
    Path("cut.png").write_bytes(png[: len(png) * 6 // 10])
    Path("damaged.png").write_bytes(png[:-40] + b"?" + png[-39:])
    origin = Origin.read(png, "")
    many = origin.model_copy(update={"batch_size": 10**5})
    slow = origin.model_copy(update={"settings": origin.settings | {"num_steps": 10**9}})
    Path("many.png").write_bytes(many.png(decode_png(png)))
    Path("slow.png").write_bytes(slow.png(decode_png(png)))
    Path("good.png").write_bytes(png)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "Pipeline", None)
        for arguments, code, message in [
            (["RGBA.png"], 4, "RGBA.png: RGBA, 64 x 64 pixels"),
            (["P.png"], 4, "P.png: P, 64 x 64 pixels"),
            (["cut.png"], 4, "cut.png: a damaged PNG"),
            (["damaged.png"], 4, "damaged.png: a damaged PNG"),
            (["many.png"], 4, "many.png: one of a batch of 100000 images"),
            (["slow.png"], 4, "slow.png: an origin with num_steps: found 1000000000"),
            (["good.png", "--output", "/nonexistent/x.png"], 2, "/nonexistent/x.png: no folder /nonexistent"),
            (["good.png", "--output", "/proc/x.png"], 5, "/proc: no file can be made there"),
            (["good.png", "--output", "good.png"], 2, "good.png: a file that exists already"),
            (["good.png", "--output", "out"], 2, "out: a folder"),
            (["out"], 2, "out: no such file"),
        ]:
            assert cli.main(["replay", *arguments]) == code
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 2 and lines[0].startswith(message) and lines[1].startswith("fix: "), lines
    small = origin.png(decode_png(png)[:32])
    Path("small.png").write_bytes(small)
    assert cli.main(["replay", "small.png"]) == 4
    assert capsys.readouterr().err.startswith("small.png: 32 x 64 pixels; expected 64 x 64")


def test_replay_makes_every_image_again_and_tells_a_changed_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained_data.make(tmp_path)
    stage_scripts.run("sample")
    trained_data.change(tmp_path, "sample", batch_size=3)
    prompts = ["a small red circle at the top", "no caption of the corpus", "a star", "a blue cross"]
    assert cli.main(["generate", *prompts, "--output", "out", "--seed", "4", "--guidance-scale", "2"]) == 0
    unit = samples.read(tmp_path / "data/samples")[1]["seen"]
    for i in range(len(unit)):
        (tmp_path / "out" / f"sample-{i}.png").write_bytes(unit.png(i))
    paths = sorted(Path("out").iterdir())
    assert len(paths) == 12
    for path in paths:
        assert cli.main(["replay", str(path), "--output", "again.png", "--overwrite"]) == 0, capsys.readouterr().err
        assert Path("again.png").read_bytes() == path.read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", io.TextIOWrapper(piped := io.BytesIO()))
        assert cli.main(["replay", str(paths[0]), "--output", "-"]) == 0
        assert piped.getvalue() == paths[0].read_bytes() and not Path("-").exists()
    assert f"{paths[0]}: equal in all" in capsys.readouterr().err
    assert cli.main(["generate", "a red star " * 30, "--output", "long"]) == 0
    assert re.search(r"^warning: \d+ tokens are cut to the 40 of training: '.{60}'$", capsys.readouterr().err, re.M)
    check_refusals(paths[0].read_bytes(), monkeypatch, capsys)
    origin = Origin.read(paths[0].read_bytes(), "here")
    changed = decode_png(paths[0].read_bytes()).copy()
    changed[3, 4] ^= 5
    paths[0].write_bytes(origin.png(changed))
    paths[1].write_bytes(encode_png(changed))
    other = origin.model_copy(update={"models": origin.models | {"unet": "0" * 64}})
    paths[2].write_bytes(other.png(changed))
    paths[3].write_bytes(origin.model_copy(update={"numerics": 1}).png(changed))
    capsys.readouterr()
    for path, message in [
        (paths[0], "3 of 12288 values differ, by 5 at most"),
        (paths[1], "no PNG that says"),
        (paths[2], f"an image of unet {'0' * 64}"),
        (paths[3], "3 of 12288 values differ, by 5 at most; expected equal pixels, but for rounding: it is older"),
    ]:
        assert cli.main(["replay", str(path)]) == 4
        assert message in capsys.readouterr().err
    assert cli.main(["replay", "nowhere.png"]) == 2


def test_generate_imports_nothing_heavy_but_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained_data.make(tmp_path)
    program = """
import sys
from ldm.tools.cli import main
assert main(["generate", "no caption of the corpus", "--output", "out"]) == 0
heavy = "transformers timm open_clip torchvision torch._dynamo accelerate matplotlib scipy torchmetrics dvc"
sys.exit(" ".join(name for name in heavy.split() if name in sys.modules) or 0)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("out/0000.png").is_file()
