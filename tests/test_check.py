"""Rules that bind sections together: each has its finding, with line, value and reason."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ldm.core.errors import ConfigError
from ldm.core.params import OF_THE_REPOSITORY
from ldm.tools.check import check
from tests.repository import params_of, setting

ROOT = Path(__file__).parents[1]


def edited(tmp_path: Path, recipe: str, changes: dict[str, Any]) -> Path:
    """A recipe with a few values changed, by dotted key."""
    yaml = YAML()
    params = yaml.load(params_of(Path(recipe).stem))
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = params
        for name in sections:
            section = section[name]
        section[last] = value
    path = tmp_path / "params.yaml"
    with path.open("w") as file:
        yaml.dump(params, file)
    return path


def findings(tmp_path: Path, changes: dict[str, Any], recipe: str = "tiny.yaml") -> list[str]:
    """What the check says, without directory, line and fix, which it must have got right."""
    path = edited(tmp_path, recipe, changes)
    lines = path.read_text().splitlines()
    with pytest.raises(ConfigError) as caught:
        check.params_file(path)
    found: list[str] = []
    said = str(caught.value).splitlines()
    for finding, fix in zip(said[::2], said[1::2], strict=True):
        assert fix.startswith("fix: ") and len(fix) > 10
        file, line, text = finding.split(":", 2)
        key = text.split(":")[0].strip()
        assert file == str(path)
        assert lines[int(line) - 1].removeprefix("  - ").strip().startswith(f"{key.split('.')[-1]}:"), finding
        found.append(text.strip())
    return found


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        (
            {"prepare.image_size_px": 30},
            "prepare.image_size_px: found 30; expected a multiple of 4, the pixels per latent of "
            "train_autoencoder.network (patch_px x 2^(levels - 1))",
        ),
        (
            {"prepare.image_size_px": 64},
            "train_unet.network.latent_size: found 8; expected 16: prepare.image_size_px 64 over the autoencoder's 4 "
            "pixels per latent",
        ),
        (
            {"train_autoencoder.network.latent_channels": 4},
            "train_unet.network.latent_channels: found 8; expected 4 as in train_autoencoder.network",
        ),
        (
            {"train_clip.source.network.text.width": 64},
            "train_unet.network.context_width: found 32; expected 64, the width of CLIP's text tower",
        ),
        (
            {"embed_text.context_tokens": 40, "train_unet.network.max_context_tokens": 40},
            "embed_text.context_tokens: found 40; expected null or at most 32, all that CLIP's text tower reads",
        ),
        (
            {"embed_text.layer": "penultimate", "train_clip.source.network.text.layers": 1},
            "embed_text.layer: found penultimate; expected last: CLIP's text tower has one layer only",
        ),
        (
            {"train_unet.network.max_context_tokens": 16},
            "train_unet.network.max_context_tokens: found 16; expected at least 32, the most tokens that embed_text "
            "may keep",
        ),
        (
            {"train_unet.init_from": {"directory": "other/unet", "may_differ": []}},
            "train_unet.init_from.directory: found other/unet; expected a path in data/models/unet, the folder where "
            "DVC sees that weights changed",
        ),
        (
            {"train_autoencoder.reconstruction.num_gradient_scales": 6},
            "train_autoencoder.reconstruction.num_gradient_scales: found 6; expected at most 5: every scale halves "
            "prepare.image_size_px 32, and two pixels make a gradient",
        ),
        (
            {"prepare.image_size_px": 8, "train_unet.network.latent_size": 2},
            "prepare.image_size_px: found 8; expected at least 11, the window of structural similarity",
        ),
        (
            {"train_unet.init_from": {"directory": "data/models/unet/../../unet", "may_differ": ["prediction"]}},
            "train_unet.init_from.directory: found data/models/unet/../../unet; expected a path in data/models/unet, "
            "the folder where DVC sees that weights changed",
        ),
        (
            {"evaluate.feature_spaces": [{"kind": "inception", "weights": "data/models/inception/../x"}]},
            "evaluate.feature_spaces.0.weights: found data/models/inception/../x; expected a path in "
            "data/models/inception, the folder where DVC sees that weights changed",
        ),
        (
            {"train_clip.source.training.batch_size": 100_000},
            "train_clip.source.training.batch_size: found 100000; expected at most 512, the images of "
            "prepare.corpus.num_train",
        ),
    ],
)
def test_a_contradiction_is_one_line_with_its_reason(tmp_path: Path, changes: dict[str, Any], finding: str) -> None:
    found = findings(tmp_path, changes)
    assert found == [finding]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_of_weights_that_leaves_its_folder_is_refused_for_clip_too(tmp_path: Path, kind: str) -> None:
    path = "data/models/clip/../../../elsewhere"
    source: dict[str, Any] = {"kind": kind, "path": path, "quick_gelu": False}
    source |= {"architecture": "ViT-H-14"} if kind == "file" else {}
    (found,) = findings(tmp_path, {"train_clip.source": source}, "gpu-256.yaml")
    assert found.startswith("train_clip.source.path: found data/models/clip/../../../elsewhere; expected a path in ")


@pytest.mark.parametrize(
    "change",
    [
        {"captions": "data/x/../images"},
        {"images": "data/../../elsewhere"},
        {"images": "./data/images"},
        {"images": "data//images"},
        {"images": "data/images/"},
        {"images": "data/./images"},
        {"images": "/data/images"},
        {"images": "~/images"},
        {"images": "data/.images"},
        {"images": ".."},
        {"images": "."},
        {"images": ""},
        {"images": ".git/objects"},
        {"images": "data\\images"},
        {"unet": "stages"},
        {"runs": "Tests/x"},
        {"samples": "dvc.yaml"},
        {"images": "data/captions"},
        {"images": "data/Captions"},
        {"images": "data/captions/val"},
        {"runs": "data/unet/runs"},
        {"unet": "runs/unet"},
        {"unet": "RUNS"},
        {"samples": "data"},
        {"prepare_results": "data/source/prepare"},
        {"clip": "data/models/clip"},
    ],
    ids=lambda change: "-".join(*change.items()),
)
def test_an_artefact_lies_below_the_root_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    text = (ROOT / "paths.yaml").read_text()
    (tmp_path / "paths.yaml").write_text(setting(**{f"paths__{name}": value for name, value in change.items()})(text))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check.params_file(ROOT / "params.yaml")
    line, fix = str(caught.value).splitlines()
    assert re.match(r"paths.yaml:\d+: paths", line) and all(value in line for value in change.values())
    assert "; expected a " in line and fix.startswith("fix: ")


@pytest.mark.parametrize("directory", ["..", "a/../..", "/a", "a/", "a//b", "./a", "~", "", "a/.."])
def test_a_corpus_lies_below_the_source(tmp_path: Path, directory: str) -> None:
    (found,) = findings(tmp_path, {"prepare.corpus.directory": directory}, "folder.yaml")
    assert found.startswith(f'prepare.corpus.directory: found "{directory}"; expected a string matching ')


def test_what_the_repository_holds_is_no_place_for_artefacts() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    there = {line.split("/")[0] for line in listing.stdout.splitlines()}
    assert {name for name in there if not name.startswith(".")} - {"data"} <= set(OF_THE_REPOSITORY)


def test_guidance_without_dropped_captions_is_refused_in_samples_and_sweep(tmp_path: Path) -> None:
    found = findings(tmp_path, {"train_unet.diffusion.caption_dropout": 0})
    reason = "train_unet.diffusion.caption_dropout is 0, so the network never learned to answer without a caption"
    assert found == [
        f"sample.drawing.guidance_scale: found 3; expected 1: {reason}",
        f"sample.sweep.guidance_scales: found [1.0, 3.0]; expected [1] or []: {reason}",
    ]
    unguided = {"sample.drawing.guidance_scale": 1, "sample.sweep.guidance_scales": []}
    check.params_file(edited(tmp_path, "tiny.yaml", {"train_unet.diffusion.caption_dropout": 0, **unguided}))


def test_eps_with_a_schedule_that_ends_in_noise_is_refused_with_the_reason(tmp_path: Path) -> None:
    changes = {"train_unet.diffusion.prediction": "eps", "train_unet.diffusion.schedule": "zero_terminal_snr"}
    (found,) = findings(tmp_path, changes)
    assert found.startswith("train_unet.diffusion: prediction eps cannot be used with schedule zero_terminal_snr")


def test_an_objective_that_does_not_train_the_start_of_sampling_is_refused_with_the_numbers(tmp_path: Path) -> None:
    former = {
        "schedule": "zero_terminal_snr",
        "prediction": "v",
        "loss_weighting": {"kind": "min_snr", "gamma": 5.0},
        "time_sampling": {"kind": "uniform"},
    }
    changes: dict[str, Any] = {f"train_unet.diffusion.{key}": value for key, value in former.items()}
    assert findings(tmp_path, changes, "gpu-256.yaml") == [
        "train_unet.diffusion.loss_weighting: found {kind: min_snr, gamma: 5.0}; expected {kind: uniform}: sampling "
        "asks at t = 1, where an error of the prediction is one of the clean latent 1 times as large and training puts "
        "0.0007 of an even share of its loss weight (0.00033 of all of it is above t = 0.9): samples would be wrong by "
        "0.17 of their deviation, more than 0.1"
    ]
    check.params_file(
        edited(tmp_path, "gpu-256.yaml", changes | {"train_unet.diffusion.loss_weighting": {"kind": "uniform"}})
    )


def test_eps_is_refused_where_its_error_becomes_a_huge_one_of_the_latent(tmp_path: Path) -> None:
    eps = {"train_unet.diffusion.prediction": "eps", "train_unet.diffusion.time_sampling": {"kind": "uniform"}}
    (found,) = findings(tmp_path, eps | {"train_unet.diffusion.schedule": "cosine"})
    assert found.startswith(
        "train_unet.diffusion.prediction: found eps; expected v: sampling asks at t = 1, where an error"
    )
    assert "2.03e+04 times as large" in found
    for schedule in ("linear", "scaled_linear"):
        check.params_file(edited(tmp_path, "tiny.yaml", eps | {"train_unet.diffusion.schedule": schedule}))


def test_all_that_keeps_an_objective_from_being_sound_is_named(tmp_path: Path) -> None:
    early = {"train_unet.diffusion.time_sampling.mean": -4.0, "train_unet.diffusion.prediction": "eps"}
    found = findings(tmp_path, early | {"train_unet.diffusion.schedule": "cosine"}, "gpu-256.yaml")
    assert [line.split(": ")[:2] for line in found] == [
        ["train_unet.diffusion.time_sampling", "found {kind"],
        ["train_unet.diffusion.prediction", "found eps; expected v"],
    ]
    steps = {"sample.drawing.spacing": "log_snr", "sample.drawing.time_shift": 50.0, "sample.drawing.num_steps": 3}
    uniform = {"train_unet.diffusion.schedule": "linear", "train_unet.diffusion.time_sampling": {"kind": "uniform"}}
    (line,) = findings(tmp_path, steps | uniform)
    assert line.startswith("sample.drawing.time_shift: found 50.0; expected 1.0: ")


def test_a_task_must_fit_the_drawing_that_it_changes(tmp_path: Path) -> None:
    found = findings(tmp_path, {"tasks.inpaint.jump_length": 30, "tasks.upscale.drawing": {"num_step": 3}})
    assert found[0] == "tasks.inpaint: jump_length: 30 with 30 steps; expected less than num_steps"
    assert found[1].startswith("tasks.upscale: num_step: unknown key; expected one of sampler, num_steps,")
    assert len(found) == 2


def test_what_only_the_shapes_have(tmp_path: Path) -> None:
    found = findings(tmp_path, {"train_clip.source.twins_together": True, "sample.seen_split": "val"}, "openmoji.yaml")
    assert [line.split(":")[0] for line in found] == ["train_clip.source.twins_together", "sample.seen_split"]


def test_what_is_named_after_a_corpus_judges_its_images_only(tmp_path: Path) -> None:
    of_shapes = {"evaluate.accuracy": {"kind": "shapes"}, "evaluate.feature_spaces": [{"kind": "shapes"}]}
    assert findings(tmp_path, of_shapes, "openmoji.yaml") == [
        "evaluate.accuracy.kind: found shapes; expected retrieval: this oracle cannot check the captions of the corpus "
        "openmoji",
        "evaluate.feature_spaces.0.kind: found shapes; expected a space for any images: this one is for those of the "
        "corpus shapes only, not of openmoji",
    ]
    retrieval = {"kind": "retrieval", "num_prompts": 5, "k": 2, "num_images": 12}
    check.params_file(edited(tmp_path, "tiny.yaml", {"evaluate.accuracy": retrieval, "evaluate.feature_spaces": []}))


def test_a_feature_space_of_one_kind_is_named_once(tmp_path: Path) -> None:
    found = findings(tmp_path, {"evaluate.feature_spaces": [{"kind": "shapes"}, {"kind": "shapes"}]})
    assert found == [
        "evaluate: feature_spaces ['shapes', 'shapes'] name one twice; expected each kind once: metrics have its name"
    ]


def test_keys_belong_to_their_kind(tmp_path: Path) -> None:
    unknown = {"evaluate.accuracy": {"kind": "shapes", "k": 3}, "evaluate.feature_spaces": [{"kind": "clip"}]}
    assert findings(tmp_path, unknown) == [
        "evaluate.accuracy.k: unknown key; expected one of kind",
        'evaluate.feature_spaces.0.kind: found "clip"; expected one of inception, shapes',
    ]


def test_a_pretrained_clip_is_known_by_its_architecture(tmp_path: Path) -> None:
    found = findings(tmp_path, {"train_clip.source.architecture": "ViT-B-32"}, "gpu-256.yaml")
    assert found == ["train_unet.network.context_width: found 1024; expected 512, the width of CLIP's text tower"]
    (line,) = findings(tmp_path, {"train_clip.source.architecture": "ViT-B-33"}, "gpu-256.yaml")
    assert line.startswith("train_clip.source.architecture: found ViT-B-33; expected an architecture of open_clip")


@pytest.mark.parametrize(
    ("key", "kinds"),
    [
        ("train_clip.source.kind", "file, folder, open_clip, train"),
        ("train_autoencoder.network.kind", "kl"),
        ("train_unet.network.kind", "unet"),
    ],
)
def test_a_kind_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path, key: str, kinds: str) -> None:
    (found,) = findings(tmp_path, {key: "transformer"})
    assert found == f'{key}: found "transformer"; expected one of {kinds}'


def test_a_key_of_another_source_is_unknown(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, {"train_clip.source.twins_together": False}, "gpu-256.yaml")
    expected = "expected one of kind, architecture, tag, quick_gelu"
    assert found == f"train_clip.source.twins_together: unknown key; {expected}"


def test_findings_of_single_sections_come_first_and_all_at_once(tmp_path: Path) -> None:
    found = findings(tmp_path, {"machine.threads": 0, "evaluate.batch_size": 0, "sample.drawing.guidance_scale": -1})
    assert [line.split(":")[0] for line in found] == [
        "machine.threads",
        "sample.drawing.guidance_scale",
        "evaluate.batch_size",
    ]


def test_params_and_paths_are_checked_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = edited(tmp_path, "tiny.yaml", {"machine.threads": 0, "paths": {"source": "x"}})
    (tmp_path / "paths.yaml").write_text((ROOT / "paths.yaml").read_text().replace("  runs: runs", "  machine: runs"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check.params_file(path)
    found = [re.sub(r":\d+:", ":", line.replace(f"{tmp_path}/", "")) for line in str(caught.value).splitlines()]
    assert found[:2] == [
        "params.yaml: paths: section in the wrong file; expected it in paths.yaml",
        "fix: write what differs into paths.yaml, and delete the section here",
    ]
    assert [line.split(";")[0] for line in found[2::2]] == [
        "params.yaml: machine.threads: found 0",
        "paths.yaml: paths.runs: missing",
        "paths.yaml: paths.machine: unknown key",
    ]


def test_a_mistake_in_a_params_file_shows_without_paths_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^paths.yaml: no such file; expected a params file\nfix: run from the "):
        check.params_file()


def test_the_committed_params_are_good() -> None:
    assert check.params_file(ROOT / "params.yaml").prepare.corpus.kind == "shapes"
