"""A model as a folder of its own: written by stage `model`, used where nothing else is."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.images import decode_png
from ldm.core.shards import SPLITS
from ldm.sampling.origin import Origin
from ldm.text.embedding.embeddings import TextContext
from ldm.text.model import clip
from ldm.text.model.captions import Captions
from ldm.tools import cli
from ldm.tools.model import folder
from ldm.tools.model.parts import Parts, kind
from ldm.tools.pipeline import Pipeline
from tests.import_closure import ROOT
from tests.kinds import KINDS

PROMPTS = ["a red star above a blue cross", "a green square"]


@pytest.fixture(scope="module")
def model(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as the stage writes it, where nothing of the repository is."""
    directory = tmp_path_factory.mktemp("elsewhere") / "model"
    folder.write(directory, Parts.of(root), with_words=True)
    return directory


@pytest.fixture(scope="module")
def alone(model: Path) -> Pipeline:
    return Pipeline.load(model)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_it_draws_what_the_repository_draws(alone: Pipeline, loaded: Pipeline, root: Path):
    stored = Captions(root / "data/captions/train").texts[0][0]
    prompts, settings = [*PROMPTS, stored], {"seed": 3, "num_steps": 3}
    assert torch.equal(alone(prompts, **settings), loaded(prompts, **settings))
    assert list(alone.pngs(prompts, **settings)) == list(loaded.pngs(prompts, **settings)), "origins are equal too"
    assert (alone.drawing, alone.batch_size, alone.tasks) == (loaded.drawing, loaded.batch_size, loaded.tasks)


def test_tasks_and_replay_work_in_it(alone: Pipeline, loaded: Pipeline):
    picture = alone(PROMPTS)
    settings = {"num_steps": 4, "strength": 0.5}
    assert torch.equal(alone.img2img(picture, PROMPTS, **settings), loaded.img2img(picture, PROMPTS, **settings))
    png = next(loaded.pngs(PROMPTS))
    again = alone.replay(Origin.read(png, "here"))
    assert torch.equal(again.permute(1, 2, 0), torch.tensor(decode_png(png)))


def test_an_image_of_a_stored_caption_is_replayed_in_its_repository(alone: Pipeline, loaded: Pipeline):
    origin = Origin.read(next(loaded.pngs(PROMPTS)), "here").model_copy(update={"encoded": False})
    assert loaded.replay(origin).shape == (3, 64, 64)
    with pytest.raises(IntegrityError, match="a model folder has no captions"):
        alone.replay(origin)


def test_no_caption_travels(model: Path, root: Path, alone: Pipeline):
    """Only the sorted words do: no file has two words of a caption side by side, nor the hash of one."""
    splits = [Captions(root / "data/captions" / split).texts for split in SPLITS]
    captions = {text for split in splits for texts in split for text in texts}
    files = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert not any(text.encode() in content for text in captions for content in files.values())
    assert {name for name in files if name.startswith("text/")} == {
        f"text/{name}" for name in ("index.json", "null.safetensors", "passport.json", "words.json")
    }
    words = json.loads(files["text/words.json"])
    assert words == sorted(set(words)) and not any(" " in word for word in words)
    assert alone.unknown_words(["A cat at a RED star"]) == ["cat"]


def test_the_image_tower_stays_at_home(model: Path, root: Path):
    whole, half = (load_file(folder / "clip/model.safetensors") for folder in (root / "data", model))
    assert any("visual" in name for name in whole) and not any("visual" in name for name in half)
    assert half and all(torch.equal(whole[f"text.{name}"], tensor) for name, tensor in half.items())
    assert sum(tensor.nbytes for tensor in half.values()) < sum(tensor.nbytes for tensor in whole.values())
    passports = [artifact.read_passport(folder / "clip", KINDS["clip"]) for folder in (root / "data", model)]
    assert passports[0].content_sha256 == clip.identity(passports[0]) == clip.identity(passports[1])


def test_an_adapter_stays_at_home(root: Path, tmp_path: Path):
    shutil.copytree(root / "data", tmp_path / "data")
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "data/unet/adapter").mkdir()
    (tmp_path / "data/unet/adapter/model.safetensors").touch()
    folder.write(tmp_path / "model", Parts.of(tmp_path), with_words=False)
    assert {path.name for path in (tmp_path / "model/unet").iterdir()} == {"model.safetensors", "passport.json"}


def test_words_stay_at_home_where_they_are_private(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    folder.write(tmp_path / "model", Parts.of(Path()), with_words=False)
    assert not (tmp_path / "model/text/words.json").exists()
    assert Pipeline.load(tmp_path / "model").unknown_words(["a cat"]) == []


def test_the_command_works_in_a_folder_with_nothing_else(model: Path, tmp_path: Path):
    """Done when 2. What is opened is counted by the system: the model, once for its hash, and nothing else of ours."""
    shutil.copytree(model, tmp_path / "m")
    script = (
        "import sys\n"
        "from ldm.tools import cli\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == 'open' else None)\n"
        "assert cli.main(['generate', 'a red zebra', '--model', 'm', '--output', 'out']) == 0\n"
        "import os\n"
        "here = os.path.realpath('.')\n"
        "mine = {os.path.relpath(os.path.realpath(p), here) for p in opened if os.path.realpath(p).startswith(here)}\n"
        "print(*sorted(mine), sep='\\n')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no training caption has: zebra" in done.stderr
    opened = {line for line in done.stdout.splitlines() if line.startswith("m/")}
    sizes = {name: (tmp_path / name).stat().st_size for name in opened}
    assert opened == {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "m").rglob("*") if path.is_file()}
    others = sum(size for name, size in sizes.items() if not name.endswith("model.safetensors"))
    assert others < 20_000, "passports, words and merges"
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out"}


def test_no_more_is_read_than_the_weights(model: Path, alone: Pipeline):
    """Each file is read for its hash, and the weights into memory: the disk gives each byte once. What Python imports,
    `alone` has read before."""
    sizes = {path.relative_to(model): path.stat().st_size for path in model.rglob("*") if path.is_file()}
    weights = sum(size for path, size in sizes.items() if path.name == "model.safetensors")
    others = sum(sizes.values()) - weights
    before = bytes_read()
    Pipeline.load(model)(PROMPTS)
    assert weights <= bytes_read() - before <= 2 * weights + 4 * others and others < 20_000


def bytes_read() -> int:
    """What this process has read from files so far."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_every_part_is_hashed(model: Path, tmp_path: Path):
    assert folder.verify(model).kind == "model"
    for part in ("unet/model", "autoencoder/model", "clip/model", "text/null"):
        damaged = Path(shutil.copytree(model, tmp_path / part.replace("/", "_")))
        path = damaged / f"{part}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        for read in (Pipeline.load, folder.verify):
            with pytest.raises(IntegrityError, match=str(path)):
                read(damaged)


def test_another_unet_that_would_fit_is_refused(copy: Path):
    passport = artifact.read_passport(copy / "unet", KINDS["unet"])
    tensors = {name: tensor + 0 for name, tensor in artifact.read(copy / "unet", KINDS["unet"])[1].items()}
    tensors["conv_in.weight"] += 1
    artifact.write(copy / "unet", KINDS["unet"], passport.config, tensors, passport.inputs, passport.facts)
    with pytest.raises(IntegrityError, match="take the whole folder"):
        Pipeline.load(copy)


def test_parts_that_were_not_made_from_each_other_are_not_written(root: Path, tmp_path: Path):
    here = Path(shutil.copytree(root, tmp_path / "repository"))
    passport = json.loads((here / "data/embeddings/passport.json").read_text())
    passport["inputs"]["clip"] = "0" * 64
    artifact.write_json(here / "data/embeddings/passport.json", artifact.sealed(passport))
    with pytest.raises(IntegrityError, match="made with clip 0000"):
        folder.write(tmp_path / "model", Parts.of(here), with_words=True)


def test_a_repository_without_trainings_says_where_a_model_is(root: Path, tmp_path: Path):
    """As a clone is after `dvc pull data/model`."""
    here = Path(shutil.copytree(root, tmp_path / "repository"))
    shutil.rmtree(here / "data/embeddings")
    with pytest.raises(IntegrityError, match=r"data/embeddings: no passport.json.*\n.*`dvc pull \S*data/model` brings"):
        Pipeline.load(here)
    (here / "data/model").mkdir()
    (here / "data/model/passport.json").touch()
    with pytest.raises(IntegrityError, match=r"fix: add --model \S*data/model, or `dvc pull` for the rest"):
        Pipeline.load(here)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_is_no_model_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="expected a repository or a model folder"):
        Parts.of(tmp_path / name)
    arguments = ["generate", "x", "--model", str(tmp_path / name), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2 and not (tmp_path / "out").exists()


def test_the_passport_of_a_part_is_none_of_a_model(model: Path):
    with pytest.raises(IntegrityError, match="expected kind 'model'"):
        Parts.of(model / "unet")
    assert (
        artifact.read_passport(model, kind()).inputs["embeddings"]
        == TextContext(model / "text").passport.content_sha256
    )


def test_former_settings_still_open():
    """A key that `sample.drawing` or `tasks` gains is a new format: append its upgrade to `kind`. The fixture stays."""
    parts = Parts.of(ROOT / "tests/fixtures/model")
    assert parts.unet_sha256 == "1" * 64 and parts.tasks.inpaint.num_resamplings == 5
    assert parts.drawing.sampler.kind == "dpm_solver_pp_2m" and parts.drawing.guidance_interval == (0, 1)
