import subprocess
import sys
from pathlib import Path

import pytest

from ldm import cli, pipeline, samples
from ldm.errors import IntegrityError
from ldm.images import decode_png, encode_png
from ldm.provenance import Origin
from tests import stage_scripts, trained_data
from tests.import_closure import ROOT


class FakePipeline:
    """Stands in for the trained artefacts: a memory of what it was asked."""

    asked: list[tuple[list[str], dict]] = []

    @classmethod
    def load(cls, device=None):
        return cls()

    def write(self, prompts, directory, **settings):
        self.asked.append((prompts, settings))
        return [directory / f"{i}.png" for i in range(len(prompts))]


@pytest.fixture
def asked(monkeypatch) -> list[tuple[list[str], dict]]:
    monkeypatch.setattr(pipeline, "Pipeline", FakePipeline)
    monkeypatch.setattr(FakePipeline, "asked", [])
    return FakePipeline.asked


def test_generate_writes_one_png_per_prompt_and_says_which(asked, tmp_path, capsys):
    arguments = ["generate", "a cat", "a dog", "--output", str(tmp_path / "out"), "--num-images", "2", "--seed", "5"]
    assert cli.main(arguments) == 0
    assert asked == [(["a cat", "a cat", "a dog", "a dog"], {"seed": 5})]
    lines = capsys.readouterr().out.splitlines()
    prompts = ["a cat", "a cat", "a dog", "a dog"]
    assert lines == [f"{tmp_path / 'out' / f'{i}.png'}  {prompt}" for i, prompt in enumerate(prompts)]


def test_generate_passes_on_what_it_is_told_only(asked, tmp_path):
    options = ["--guidance-scale", "2.5", "--num-steps", "9", "--sampler", "ddim"]
    assert cli.main(["generate", "x", "--output", str(tmp_path), *options]) == 0
    assert asked[0][1] == {"guidance_scale": 2.5, "num_steps": 9, "sampler": "ddim"}


@pytest.mark.parametrize("arguments", [[], ["generate", "x"], ["generate", "x", "--output", "o", "--num-images", "0"]])
def test_wrong_arguments_end_with_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2 and "usage: ldm" in capsys.readouterr().err


def test_a_users_mistake_costs_its_lines_and_an_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check"]) == 2
    assert capsys.readouterr().err.startswith("params.yaml: no such file; expected a params file\nfix: ")


def test_debugging_keeps_the_traceback(tmp_path, monkeypatch):
    def refuse(device=None):
        raise IntegrityError("here", "this", "that", "do so")

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
from ldm.cli import main
assert main(["check", "{ROOT / "params.yaml"}"]) == 0
try:
    main(["generate", "--help"])
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


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
        assert cli.main(["replay", str(path), "--output", "again.png"]) == 0, capsys.readouterr().err
        assert Path("again.png").read_bytes() == path.read_bytes()
    origin = Origin.read(paths[0].read_bytes(), "here")
    changed = decode_png(paths[0].read_bytes()).copy()
    changed[3, 4] ^= 5
    paths[0].write_bytes(origin.png(changed))
    paths[1].write_bytes(encode_png(changed))
    other = origin.model_copy(update={"models": origin.models | {"unet": "0" * 64}})
    paths[2].write_bytes(other.png(changed))
    capsys.readouterr()
    for path, message in [
        (paths[0], "3 of 12288 values differ, by 5 at most"),
        (paths[1], "no PNG that says"),
        (paths[2], f"an image of unet {'0' * 64}"),
    ]:
        assert cli.main(["replay", str(path)]) == 4
        assert message in capsys.readouterr().err
    assert cli.main(["replay", "nowhere.png"]) == 2
