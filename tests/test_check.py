"""Rules that bind sections together: each has its finding, with line, value and reason."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ldm.core.errors import ConfigError
from ldm.core.params import OF_THE_REPOSITORY
from ldm.tools.check import check, contents, sections
from tests.repository import params_of, setting

ROOT = Path(__file__).parents[1]
BROUGHT: dict[str, Any] = {
    "kind": "pretrained",
    "path": "data/models/autoencoder/sd",
    "factor": 4,
    "latent_channels": 8,
    "reconstruction": None,
    "training": None,
}


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


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"kind": "foldr"}, "subject.corpus.kind", 'found "foldr"'),
        ({"kind": None}, "subject.corpus.kind", "found null"),
        ({"seed": "x"}, "subject.corpus.seed", 'found "x"; expected an integer'),
        ({"sed": 1}, "subject.corpus.sed", "unknown key; expected one of pixels, captions"),
    ],
)
def test_a_mistake_in_a_part_of_a_mixture_is_named_with_its_key_and_line(
    tmp_path: Path, change: dict[str, Any], key: str, words: str
) -> None:
    path = edited(
        tmp_path, "dreambooth.yaml", {f"prepare.corpus.parts.subject.corpus.{k}": v for k, v in change.items()}
    )
    with pytest.raises(ConfigError) as caught:
        check.params_file(path)
    first = str(caught.value).splitlines()[0]
    number = int(first.removeprefix(f"{path}:").split(":")[0])
    assert f": prepare.corpus.parts.{key}: {words}" in first
    assert path.read_text().splitlines()[number - 1].strip().startswith(f"{key.rpartition('.')[2]}:")


def test_a_name_that_a_part_of_a_mixture_may_not_have_is_refused_with_those_it_may(tmp_path: Path) -> None:
    path = edited(tmp_path, "dreambooth.yaml", {})
    path.write_text(path.read_text().replace("      subject:\n", "      My Part:\n"))
    with pytest.raises(ConfigError, match=r'parts\.My Part: found "My Part"; expected a string matching'):
        check.params_file(path)


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
            "train_autoencoder.source (patch_px x 2^(levels - 1))",
        ),
        (
            {"prepare.image_size_px": 64},
            "train_unet.network.latent_size: found 8; expected 16: prepare.image_size_px 64 over the autoencoder's 4 "
            "pixels per latent",
        ),
        (
            {"train_autoencoder.source.network.latent_channels": 4},
            "train_unet.network.latent_channels: found 8; expected 4 as in train_autoencoder.source",
        ),
        (
            {"train_clip.source.network.text.width": 64},
            "train_unet.network.context_width: found 32; expected 64, the width of the text encoder",
        ),
        (
            {"embed_text.context_tokens": 40, "train_unet.network.max_context_tokens": 40},
            "embed_text.context_tokens: found 40; expected null or at most 32, all that the text encoder reads",
        ),
        (
            {"embed_text.layer": "penultimate", "train_clip.source.network.text.layers": 1},
            "embed_text.layer: found penultimate; expected last: the text encoder has one layer only",
        ),
        (
            {"train_unet.network.max_context_tokens": 16},
            "train_unet.network.max_context_tokens: found 16; expected at least 32, the most tokens that embed_text "
            "may keep",
        ),
        (
            {"train_unet.init_from": {"path": "other/unet", "may_differ": []}},
            "train_unet.init_from.path: found other/unet; expected a path in data/models/unet, the folder where "
            "DVC sees that weights changed",
        ),
        (
            {"train_autoencoder.source": BROUGHT | {"path": "vae"}},
            "train_autoencoder.source.path: found vae; expected a path in data/models/autoencoder, the folder where "
            "DVC sees that weights changed",
        ),
        (
            {"train_autoencoder.source": BROUGHT | {"latent_channels": 16}},
            "train_unet.network.latent_channels: found 8; expected 16 as in train_autoencoder.source",
        ),
        (
            {"train_autoencoder.source.reconstruction.num_gradient_scales": 6},
            "train_autoencoder.source.reconstruction.num_gradient_scales: found 6; expected at most 5: every scale "
            "halves prepare.image_size_px 32, and two pixels make a gradient",
        ),
        (
            {
                "train_autoencoder.source.reconstruction.equivariance": {"probability": 0.5, "min_scale": 0.25},
                "train_autoencoder.source.reconstruction.gradient_weight": 0.1,
                "train_autoencoder.source.reconstruction.num_gradient_scales": 4,
            },
            "train_autoencoder.source.reconstruction.num_gradient_scales: found 4; expected at most 3: every scale "
            "halves prepare.image_size_px 32, which equivariance.min_scale 0.25 makes 8 px, and two pixels make a "
            "gradient",
        ),
        (
            {
                "evaluate.feature_spaces": [
                    {"kind": "clip", "architecture": "ViT-L-14-366", "weights": "data/models/inception/x"}
                    | {"quick_gelu": True}
                ]
            },
            "evaluate.feature_spaces.0.architecture: found ViT-L-14-366; expected an architecture of open_clip "
            "(open_clip.list_models())",
        ),
        (
            {
                "evaluate.feature_spaces": [
                    {"kind": "clip", "architecture": "ViT-B-16-SigLIP", "weights": "data/models/inception/x"}
                    | {"quick_gelu": False}
                ]
            },
            "evaluate.feature_spaces.0.architecture: found ViT-B-16-SigLIP; expected one whose tokenizer is "
            "open_clip's own",
        ),
        (
            {
                "evaluate.feature_spaces": [
                    {"kind": "clip", "architecture": "ViT-L-14-quickgelu", "weights": "data/models/inception/x"}
                    | {"quick_gelu": False}
                ]
            },
            "evaluate.feature_spaces.0.quick_gelu: found false; expected true, since ViT-L-14-quickgelu is with "
            "QuickGELU",
        ),
        (
            {"train_unet.network.position_embedding": False, "sample.drawing.size_px": [32, 64]},
            "sample.drawing.size_px: found [32, 64]; expected a square: the oracle and the feature space of the corpus "
            "shapes read no other images",
        ),
        (
            {"train_unet.init_from": {"path": "data/models/unet/../../unet", "may_differ": ["prediction"]}},
            "train_unet.init_from.path: found data/models/unet/../../unet; expected a path in data/models/unet, "
            "the folder where DVC sees that weights changed",
        ),
        (
            {"evaluate.feature_spaces": [{"kind": "inception", "weights": "data/models/inception/../x"}]},
            "evaluate.feature_spaces.0.weights: found data/models/inception/../x; expected a path in "
            "data/models/inception, the folder where DVC sees that weights changed",
        ),
        (
            {"evaluate.accuracy": {"kind": "classifier", "num_images": 100, "cost": 1.0}},
            "evaluate.accuracy.kind: found classifier; expected retrieval or none: captions of the corpus shapes claim "
            "no classes",
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


def test_a_classifier_reads_images_of_its_size_that_it_has_not_learned_from(tmp_path: Path) -> None:
    side = YAML(typ="safe").load(params_of("digits"))["prepare"]["image_size_px"]
    changes = {"sample.seen_split": "train", "train_unet.network.position_embedding": False}
    found = findings(tmp_path, {**changes, "sample.drawing.size_px": [side, 2 * side]}, "digits.yaml")
    assert [line.split(";")[0] for line in found] == [
        f"sample.drawing.size_px: found [{side}, {2 * side}]",
        "sample.seen_split: found train",
    ]


def test_without_captions_nothing_is_learned_from_them_asked_for_or_checked(tmp_path: Path) -> None:
    found = findings(tmp_path, {"prepare.captions": "none"})
    reason = "prepare.captions is none, so every caption is empty"
    assert found == [
        f"train_clip.source.kind: found train; expected untrained or a pretrained CLIP: {reason}",
        f"train_unet.diffusion.caption_dropout: found 0.1; expected 0: {reason} already",
        f"evaluate.accuracy.kind: found shapes; expected none: {reason}",
    ]
    sound = {"train_unet.diffusion.caption_dropout": 0, "evaluate.accuracy": {"kind": "none"}}
    network = {"network": YAML(typ="safe").load(params_of("tiny"))["train_clip"]["source"]["network"]}
    sound |= {"train_clip.source": {"kind": "untrained", "seed": 0} | network, "prepare.captions": "none"}
    guided = findings(tmp_path, sound)
    assert [line.split(":")[0] for line in guided] == ["sample.drawing.guidance_scale", "sample.sweep.guidance_scales"]
    unguided = {"sample.drawing.guidance_scale": 1, "sample.sweep.guidance_scales": []}
    assert check.params_file(edited(tmp_path, "tiny.yaml", sound | unguided)).prepare.captions == "none"


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
        f"sample.sweep.guidance_scales: found [1.0, 3.0]; expected [] or only 1: {reason}",
    ]
    unguided = {"sample.drawing.guidance_scale": 1, "sample.sweep.guidance_scales": []}
    auto = {"sample.drawing.guidance": {"kind": "autoguidance", "directory": "data/models/guidance/early"}}
    for fitting in (unguided, auto):
        check.params_file(edited(tmp_path, "tiny.yaml", {"train_unet.diffusion.caption_dropout": 0, **fitting}))


def test_guidance_that_cannot_be_is_refused(tmp_path: Path) -> None:
    worse = {"kind": "autoguidance", "directory": "data/unet"}
    (found,) = findings(tmp_path, {"sample.drawing.guidance": worse})
    assert found.startswith("sample.drawing.guidance.directory: found data/unet; expected a path in data/models/guid")
    (found,) = findings(tmp_path, {"sample.drawing.dynamic_threshold": 0.995})
    assert found.startswith("sample.drawing.dynamic_threshold: found 0.995; expected null: only values of pixels")
    worse["directory"] = "data/models/guidance/early"
    (found,) = findings(tmp_path, {"sample.drawing.guidance": worse, "sample.drawing.negative_prompt": "a star"})
    assert found.startswith("sample.drawing: a negative_prompt with guidance autoguidance; expected classifier_free")


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


def of(name: str, **values: Any) -> dict[str, Any]:
    """Values of `train_unet.diffusion` (name: diffusion) or `sample.drawing`."""
    section = {"diffusion": "train_unet.diffusion", "drawing": "sample.drawing"}[name]
    return {f"{section}.{key}": value for key, value in values.items()}


UNIFORM = {"kind": "uniform"}
EVEN = of("diffusion", loss_weighting=UNIFORM, time_sampling=UNIFORM)
LOG_NORMAL = {"kind": "log_normal", "mean": -0.5, "std": 1.2}
HEUN = of("drawing", sampler={"kind": "heun"}, spacing="karras", num_steps=18)


@pytest.mark.parametrize(
    "changes",
    [
        of("diffusion", schedule="ve", prediction="edm", time_sampling=LOG_NORMAL) | HEUN,
        of("diffusion", schedule="ve", prediction="edm"),
        of("diffusion", schedule="vp", prediction="eps"),
        of("diffusion", schedule="vp", prediction="edm", time_sampling=LOG_NORMAL | {"mean": 0.0}) | HEUN,
        of("diffusion", schedule="flow", prediction="edm"),
        of("diffusion", schedule="linear", prediction="eps", loss_weighting={"kind": "p2", "k": 1.0, "gamma": 1.0}),
        of("diffusion", offset_noise=0.1),
    ],
    ids=["Karras et al. 2022", "ve", "vp", "vp, edm", "edm of flow", "p2", "offset noise"],
)
def test_every_objective_has_a_place_in_the_params(tmp_path: Path, changes: dict[str, Any]) -> None:
    check.params_file(edited(tmp_path, "tiny.yaml", EVEN | of("drawing", num_steps=12) | changes))


def test_the_objective_that_the_docs_show_is_legal(tmp_path: Path) -> None:
    text = (ROOT / "docs/objectives.md").read_text().split("# Other objectives")[1]
    shown = YAML(typ="safe").load(text.split("```yaml")[1].split("```")[0])
    values = of("diffusion", **shown["train_unet"]["diffusion"]) | of("drawing", **shown["sample"]["drawing"])
    check.params_file(edited(tmp_path, "default.yaml", values))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        (
            of("diffusion", schedule="ve", prediction="v"),
            "train_unet.diffusion: prediction v cannot be used with schedule ve: its latents reach 80 deviations",
        ),
        (
            of("diffusion", loss_weighting={"kind": "p2", "k": 0.0, "gamma": 1.0}),
            "train_unet.diffusion.loss_weighting.k: found 0.0; expected a number > 0 and <= 1000",
        ),
        (
            of("diffusion", offset_noise=-0.1),
            "train_unet.diffusion.offset_noise: found -0.1; expected a number >= 0 and <= 1",
        ),
        (
            of("diffusion", loss_weighting={"kind": "p2", "k": 1.0, "gamma": 0.5}, time_shift=1.0),
            "train_unet.diffusion.loss_weighting: found {kind: p2, k: 1.0, gamma: 0.5}; expected {kind: uniform}: ",
        ),
        (
            of("diffusion", schedule="ve", prediction="edm", time_sampling=LOG_NORMAL | {"mean": -4.0}),
            "train_unet.diffusion.time_sampling: found {kind: log_normal, mean: -4.0, std: 1.2}; expected {kind: "
            "uniform}: ",
        ),
        (
            of("drawing", spacing="leading"),
            "sample.drawing.spacing: found leading; expected trailing or another: schedule flow ends in pure noise at "
            "t = 1, and leading begins in pure noise at t = 0.914, where a latent has 0.086 of its signal",
        ),
        (
            of("diffusion", schedule="cosine", prediction="v") | of("drawing", sampler={"kind": "heun"}),
            "sample.drawing.sampler: found heun; expected another, such as ddim: with schedule cosine, which begins at "
            "sigma / alpha = 2.03e+04, in 12 steps it makes an error of 17 of the samples' deviation out of one of "
            "0.01 of the network's output, more than 0.1",
        ),
    ],
    ids=["ve without edm", "k of p2", "offset noise", "p2 that starves", "log-normal that starves", "leading", "heun"],
)
def test_every_contradiction_is_named_with_its_reason(tmp_path: Path, changes: dict[str, Any], finding: str) -> None:
    (found,) = findings(tmp_path, EVEN | of("drawing", num_steps=12) | changes)
    assert found.startswith(finding)


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
    unknown = {"evaluate.accuracy": {"kind": "shapes", "k": 3}, "evaluate.feature_spaces": [{"kind": "vgg"}]}
    assert findings(tmp_path, unknown) == [
        "evaluate.accuracy.k: unknown key; expected one of kind",
        'evaluate.feature_spaces.0.kind: found "vgg"; expected one of clip, inception, shapes',
    ]


@pytest.mark.parametrize("tokenizer", [None, "data/models/clip/words"])
def test_a_text_encoder_of_transformers_reads_what_its_tokenizer_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str | None
) -> None:
    """T5 itself has no limit."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "paths.yaml", tmp_path)
    path = "data/models/clip/t5"
    for folder, file, values in (
        (path, "config.json", {"d_model": 32, "num_layers": 12}),
        (tokenizer or path, "tokenizer_config.json", {"model_max_length": 512}),
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / file).write_text(json.dumps(values))
    brought = {"train_clip.text_encoder": {"kind": "transformers", "path": path, "tokenizer": tokenizer}}
    brought |= {"embed_text.padding": "masked", "train_unet.network.max_context_tokens": 77}
    said = "train_unet.network.max_context_tokens: found 77; expected at least 512, the most tokens that embed_text"
    (found,) = findings(tmp_path, brought | {"embed_text.context_tokens": None})
    assert found.startswith(said)
    with pytest.raises(ConfigError, match=r"fix: set it to 512, or embed_text\.context_tokens to 77"):
        check.params_file(tmp_path / "params.yaml")
    found, _ = findings(tmp_path, brought | {"embed_text.context_tokens": 600})
    assert (
        found == "embed_text.context_tokens: found 600; expected null or at most 512, all that the text encoder reads"
    )
    check.params_file(edited(tmp_path, "tiny.yaml", brought | {"embed_text.context_tokens": 77}))


def test_a_pretrained_clip_is_known_by_its_architecture(tmp_path: Path) -> None:
    found = findings(tmp_path, {"train_clip.source.architecture": "ViT-B-32"}, "gpu-256.yaml")
    assert found == ["train_unet.network.context_width: found 1024; expected 512, the width of the text encoder"]
    (line,) = findings(tmp_path, {"train_clip.source.architecture": "ViT-B-33"}, "gpu-256.yaml")
    assert line.startswith("train_clip.source.architecture: found ViT-B-33; expected an architecture of open_clip")


@pytest.mark.parametrize(
    ("key", "kinds"),
    [
        ("train_clip.source.kind", "file, folder, none, open_clip, train, untrained"),
        ("train_autoencoder.source.network.kind", "identity, kl"),
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


def test_the_default_breaks_no_rule_of_contents():
    document = check.config.Document(Path("recipes/default.yaml"))
    values = {name: document.read(section, name) for name, section in sections.SECTIONS.items()}
    params = sections.Params(paths=check.config.read(check.PathsParams, "paths"), **values)
    assert not [
        finding for rule in (contents.kinds, contents.captions, contents.instruments) for finding in rule(params)
    ]
    params = dataclasses.replace(params, prepare=params.prepare.model_copy(update={"captions": "none"}))
    assert [finding[0] for finding in contents.captions(params)] == [
        "train_clip.source.kind",
        "train_unet.diffusion.caption_dropout",
        "evaluate.accuracy.kind",
    ]


def with_buckets(**changes: Any) -> dict[str, Any]:
    """Changes of the recipe folder, and others by the last part of their key."""
    framing = {"kind": "buckets", "step_px": 16, "max_aspect_ratio": 2.0, "crop": "centre"}
    found = {"prepare.corpus.pixels.framing": framing, "train_unet.network.position_embedding": False}
    return {
        key: changes.get(key.rsplit(".")[-1], value)
        for key, value in {**found, "prepare.corpus.pixels.framing.step_px": 16}.items()
    }


def test_networks_take_every_bucket(tmp_path: Path) -> None:
    check.params_file(edited(tmp_path, "folder.yaml", with_buckets()))
    (found,) = findings(tmp_path, with_buckets(step_px=8), "folder.yaml")
    assert found.startswith("prepare.corpus.pixels.framing.step_px: found buckets of 72 x 56, 56 x 72; expected")
    assert found.endswith("multiples of 16, the pixels of a position in the lowest level of the UNet")
    (found,) = findings(tmp_path, with_buckets(position_embedding=True), "folder.yaml")
    assert found == (
        "train_unet.network.position_embedding: found true; expected false: prepare makes images of 3 sizes, and "
        "positions fit one"
    )


def test_the_size_of_samples_suits_the_networks(tmp_path: Path) -> None:
    unread = {"evaluate.accuracy": {"kind": "none"}, "evaluate.feature_spaces": []}
    (found,) = findings(tmp_path, unread | {"sample.drawing.size_px": [30, 32]})
    assert found.startswith("sample.drawing.size_px: found [30, 32]; expected multiples of 8, the pixels")
    (found,) = findings(tmp_path, unread | {"sample.drawing.size_px": [40, 24]})
    assert found.endswith("found [40, 24]; expected null: the positions of train_unet.network fit the square alone")


def test_a_way_to_compute_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, {"machine.compile": "fast"})
    assert found.startswith('machine.compile: found "fast"; expected one of false, true, blocks, graphs')


def test_mirrored_images_are_encoded_if_they_are_seen(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, {"train_unet.mirroring": {"unless": ["left"]}})
    assert found.startswith("encode_latents.mirrored: found false; expected true: train_unet.mirroring shows")
    (found,) = findings(tmp_path, {"encode_latents.mirrored": True})
    assert found.startswith("encode_latents.mirrored: found true; expected false: train_unet.mirroring is null")
