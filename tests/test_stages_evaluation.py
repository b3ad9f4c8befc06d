"""The stages sample and evaluate on a tiny corpus of shapes, with untrained networks and with perfect images."""

import csv
import json
import os
import random
import shutil
import socket
from pathlib import Path

import pytest
import torch

from ldm.core import artifact, config, stage
from ldm.core.errors import ConfigError, IntegrityError, MachineError
from ldm.core.images import decode_png, to_tensor
from ldm.core.shards import SPLITS, Shards, write
from ldm.evaluation import measure
from ldm.sampling import plan, samples
from ldm.sampling.origin import Origin
from ldm.sampling.params import SampleParams
from ldm.tools.report import facts, page
from tests import trained_data
from tests.kinds import KINDS
from tests.report_html import check_needs_nothing_else
from tests.stage_scripts import run
from tests.trained_data import change


class Killed(BaseException):
    """As a signal that cannot be caught."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained_data.make(folder)
        run("sample")
        run("evaluate")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, to be changed; big inputs are links."""
    (tmp_path / "data").mkdir()
    for path in (trained / "data").iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    for name in ("params.yaml", "paths.yaml"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_of_two(rank: int, port: int, names: list[str]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    for name in names:
        run(name)
    torch.distributed.destroy_process_group()


def run_on_two(*names: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(one_of_two, (port, list(names)), nprocs=2, start_method="fork")


def test_two_processes_write_the_bytes_of_one(here, trained):
    (here / "data/samples").unlink()
    (here / "data/evaluation").unlink()
    run_on_two("sample", "evaluate")
    for name in ("samples", "evaluation"):
        found, expected = contents(here / "data" / name), contents(trained / "data" / name)
        assert found.keys() == expected.keys()
        assert [key for key in found if found[key] != expected[key]] == []


def test_a_killed_evaluation_goes_on_to_the_same_bytes(here, trained, monkeypatch):
    (here / "data/evaluation").unlink()
    shutil.rmtree(here / "runs", ignore_errors=True)
    measured: list[str] = []
    honest, draw = measure.Instruments.measure, random.Random(0)

    def dies(self, subject, rows, batch_size):
        if draw.random() < 0.3:
            raise Killed
        measured.append(f"{subject.name}-{rows.start}")
        return honest(self, subject, rows, batch_size)

    monkeypatch.setattr(measure.Instruments, "measure", dies)
    num_kills = 0
    while not (here / "data/evaluation").exists():
        try:
            run("evaluate")
        except Killed:
            num_kills += 1
    assert num_kills > 2 and len(set(measured)) == len(measured), "a unit was measured twice"
    assert contents(here / "data/evaluation") == contents(trained / "data/evaluation")
    assert not list((here / "runs/evaluate").glob("*/unit-*")), "what was kept is of no use any more"


def test_sample_writes_sets_grid_and_passport(trained):
    folder = trained / "data/samples"
    passport, found = samples.read(folder)
    assert {name: len(part) for name, part in found.items()} == {
        "held_out": 6,
        "unseen": 5,
        "reworded": 4,
        "seen": 8,
        "sweep_1": 4,
        "sweep_2.5": 4,
    }
    assert (folder / "grid.png").is_file()
    assert sorted(p.name for p in folder.iterdir()) == sorted([*found, "grid.png", "passport.json"])
    for name in ("unet", "autoencoder", "embeddings"):
        there = artifact.read_passport(trained / "data" / name, KINDS[name]).content_sha256
        assert passport.inputs[name] == there
    assert passport.inputs["captions_val"] == Shards(trained / "data/captions/val").sha256
    claims = [prompt.claim for prompt in found["seen"].prompts]
    assert all(claim is not None and claim["count"] in (1, 2) for claim in claims)


def test_the_sweep_at_the_chosen_scale_gives_other_images_than_at_another(trained):
    _, found = samples.read(trained / "data/samples")
    pictures = [to_tensor([found[name].png(i) for i in range(4)]) for name in ("sweep_1", "sweep_2.5")]
    assert not torch.equal(*pictures)


def pngs(folder: Path) -> dict[str, list[bytes]]:
    return {name: [part.png(i) for i in range(len(part))] for name, part in samples.read(folder)[1].items()}


def test_how_images_are_stored_and_shown_changes_no_byte_of_them(here, trained):
    (here / "data/samples").unlink()
    change(here, "sample", num_samples_per_shard=5, num_grid_columns=1, num_grid_rows=3)
    change(here, "sample", sweep={"guidance_scales": [3], "num_prompts": 2})
    run("sample")
    before, after = pngs(trained / "data/samples"), pngs(here / "data/samples")
    assert list(after) == ["held_out", "unseen", "reworded", "seen", "sweep_3"]
    assert {name: before[name] for name in samples.SETS} == {name: after[name] for name in samples.SETS}
    names = [sorted(path.name for path in (root / "data/samples/seen").iterdir()) for root in (here, trained)]
    assert [len(each) for each in names] == [4, 5], "other shards"
    grids = [decode_png((root / "data/samples/grid.png").read_bytes()).shape for root in (here, trained)]
    assert grids[0] != grids[1], "another grid"


def test_the_size_of_a_batch_changes_rounding_at_most(here, trained):
    (here / "data/samples").unlink()
    change(here, "sample", batch_size=5)
    run("sample")
    pixels = [to_tensor(pngs(root / "data/samples")["seen"]).int() for root in (here, trained)]
    assert int((pixels[0] - pixels[1]).abs().max()) <= 1


def test_compiled_networks_in_another_layout_change_rounding_at_most(here, trained, monkeypatch):
    """With PyTorch's own kernels, since inductor's C++ takes minutes to build."""
    calls, plain = [], torch.nn.Module.compile

    def compile_as_eager(module, **kwargs):
        calls.append(type(module).__name__)
        plain(module, backend="aot_eager", **kwargs)

    torch.compiler.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", compile_as_eager)
    (here / "data/samples").unlink()
    change(here, "machine", compile="blocks", channels_last=True)
    run("sample")
    assert {"ResBlock", "SpatialTransformer"} <= set(calls)
    pixels = [to_tensor(pngs(root / "data/samples")["seen"]).int() for root in (here, trained)]
    assert int((pixels[0] - pixels[1]).abs().max()) <= 1


def test_guidance_without_dropout_is_refused_and_nothing_is_left(here):
    params = config.Document(here / "params.yaml").data
    for name in ("autoencoder", "latents", "unet", "samples"):
        (here / "data" / name).unlink()
    trained_data.write_networks(here / "data", 0.0, params["train_unet"]["diffusion"])
    with pytest.raises(ConfigError, match=r"guidance_scale: [0-9.]+, and data/unet was trained with caption_dropout 0"):
        run("sample")
    assert not (here / "data/samples").exists()
    drawing = params["sample"]["drawing"] | {"guidance_scale": 1}
    change(here, "sample", drawing=drawing, sweep={"guidance_scales": [], "num_prompts": 4})
    assert "seen 8 of 8" in run("sample")


def test_latents_of_another_autoencoder_are_refused(here, trained):
    (here / "data/latents").unlink()
    (here / "data/latents/train").mkdir(parents=True)
    passport = json.loads((trained / "data/latents/train/passport.json").read_text())
    changed = artifact.sealed(passport | {"content_sha256": "0" * 64})
    artifact.write_json(here / "data/latents/train/passport.json", changed)
    with pytest.raises(IntegrityError, match=r"made with latents_train [0-9a-f]+; expected latents_train 0000"):
        run("sample")


def test_evaluate_writes_what_dvc_and_people_read(trained):
    folder = trained / "data/evaluation"
    names = [
        "accuracies.csv",
        "beside_real.png",
        "confusion.csv",
        "failures.csv",
        "failures.png",
        "guidance_sweep.csv",
        "guidance_sweep.png",
        "metrics.json",
        "passport.json",
        "scores.csv",
        "table.md",
    ]
    assert sorted(path.name for path in folder.iterdir()) == names
    numbers = json.loads((folder / "metrics.json").read_text())
    wanted = ("scene_accuracy_held_out", "scene_accuracy_seen", "relation_accuracy", "oracle_reconstructed")
    assert all(0 <= numbers[name] <= 1 for name in wanted)
    assert (numbers["oracle_real"], numbers["oracle_shuffled"]) == (1, 0)
    assert (numbers["num_samples_held_out"], numbers["num_samples_seen"], numbers["num_reference_images"]) == (6, 8, 20)
    assert (
        numbers["own_clip_extractor_sha256"]
        == artifact.read_passport(trained / "data/clip", KINDS["clip"]).content_sha256
    )
    with (folder / "guidance_sweep.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "scene_accuracy"]
    assert [row["guidance_scale"] for row in rows] == ["1", "2.5"]
    assert "| whole scene |" in (folder / "table.md").read_text()
    passport = artifact.read_passport(folder, KINDS["evaluation"])
    assert passport.content_sha256 == artifact.sha256_file(folder / "metrics.json")
    assert passport.inputs["samples"] == samples.read(trained / "data/samples")[0].content_sha256
    assert passport.inputs["images_val"] == Shards(trained / "data/images/val").sha256


def replace_samples_by_real_images(here: Path) -> None:
    """What a perfect model would have drawn."""
    params = config.read(SampleParams, "sample", here / "params.yaml")
    captions = {split: Shards(here / "data/captions" / split) for split in SPLITS}
    images = {split: Shards(here / "data/images" / split) for split in SPLITS}
    sets = plan.choose(captions, params)
    passport, _ = samples.read(here / "data/samples")
    (here / "data/samples").unlink()

    def pictures(unit: plan.Unit) -> plan.Pictures:
        encoded = [images[p.split].image(images[p.split].keys.index(p.key)) for p in unit.prompts]
        texts, numbers = [p.prompt for p in unit.prompts], [p.prompt_number for p in unit.prompts]
        return to_tensor(encoded), Origin.of_batch(texts, numbers, {}, {})

    plan.write(here / "data/samples", sets, pictures, params, passport.inputs)


@pytest.mark.parametrize(("name", "out"), [("evaluate", "evaluation"), ("sample", "samples")])
def test_a_second_run_is_refused_while_a_first_one_writes(here, trained, name, out):
    with stage.output(Path("data") / out) as folder:
        (folder / "half").write_text("")
        with pytest.raises(MachineError, match=rf"\.{out}\.lock: a run is already .*pid {os.getpid()}"):
            run(name)
        assert (folder / "half").exists()


def test_perfect_images_score_one_and_lie_at_the_floor(here):
    replace_samples_by_real_images(here)
    (here / "data/evaluation").unlink()
    run("evaluate")
    numbers = json.loads((here / "data/evaluation/metrics.json").read_text())
    for name in samples.SETS:
        assert numbers[f"scene_accuracy_{name}"] == 1
        assert numbers[f"frechet_own_clip_{name}"] == numbers[f"frechet_own_clip_{name}_floor"]
        assert numbers[f"kid_own_clip_{name}"] == numbers[f"kid_own_clip_{name}_floor"]
        assert numbers[f"frechet_shapes_{name}"] == numbers[f"frechet_shapes_{name}_floor"]
        assert numbers[f"own_clip_score_margin_{name}"] == numbers[f"own_clip_score_margin_real_{name}"]
    assert numbers["relation_accuracy"] == 1


def test_a_corpus_without_claims_is_searched_instead(here):
    (here / "data/captions").unlink()
    for split in SPLITS:
        old = Shards(here / "data/images" / split)
        texts = [json.dumps({"captions": [f"thing {key}"], "claims": [None]}).encode() for key in old.keys]
        told = [(key, {"json": text}) for key, text in zip(old.keys, texts, strict=True)]
        write(here / "data/captions" / split, told, 10)
    replace_samples_by_real_images(here)
    (here / "data/evaluation").unlink()
    retrieval = {"kind": "retrieval", "num_prompts": 5, "k": 2, "num_images": 12}
    change(here, "evaluate", accuracy=retrieval, feature_spaces=[])
    assert "retrieval_accuracy 1.0" in run("evaluate")
    numbers = json.loads((here / "data/evaluation/metrics.json").read_text())
    assert not any("scene" in name or "oracle" in name or "shapes" in name for name in numbers)
    assert (numbers["num_retrieval_prompts"], numbers["num_retrieval_images"]) == (5, 12)
    text = page.write(facts.read(here, None))
    assert "retrieval of the own caption" in text and "the nearest 2 of 12 real images" in text
    check_needs_nothing_else(text)


def test_round_trips_by_another_autoencoder_are_refused(here, trained):
    (here / "data/autoencoder").unlink()
    passport, tensors = artifact.read(trained / "data/autoencoder", KINDS["autoencoder"])
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    artifact.write(here / "data/autoencoder", KINDS["autoencoder"], passport.config, changed, {}, {})
    with pytest.raises(IntegrityError, match="made with autoencoder"):
        run("evaluate")
