"""All that the page tells, read from the results of the repository."""

import base64
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ldm.autoencoder.model.networks import KIND as AUTOENCODER
from ldm.core import artifact, config, images, workspace
from ldm.core.artifact import Passport
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import PathsParams
from ldm.core.shards import SPLITS, Shards
from ldm.corpora.params import PrepareParams
from ldm.denoiser.model.networks import KIND as UNET
from ldm.evaluation import guidance, metrics, mistakes
from ldm.evaluation.guidance import Line
from ldm.evaluation.mistakes import Failure
from ldm.evaluation.real_images import RealImages
from ldm.sampling import samples
from ldm.sampling.samples import SETS, Prompt, Samples, shown
from ldm.text.embedding.embeddings import KIND as EMBEDDINGS
from ldm.text.model.clip import KIND as CLIP
from ldm.tools.model import parts
from ldm.tools.model.params import ModelParams
from ldm.tools.report import scores
from ldm.tools.report.scores import Confusion, Numbers, Score
from ldm.training import plots
from ldm.training.plots import Panel

_NUM_SAMPLES = 12
_MOST_PX = 256
"""Sides of pictures on the page: larger ones are shrunk."""
TIMES = "stage_times.txt"
"""Where `make demo` notes how long stages took, in the folder of runs."""


@dataclass(frozen=True)
class Pair:
    """A sample beside the real image of its prompt, as `src` of an element `img`."""

    prompt: str
    sample: str
    real: str
    failure: Failure | None


@dataclass(frozen=True)
class Training:
    """How a network was trained."""

    name: str
    num_weights: int | None
    """None if its weights are not those of one file of ours."""
    num_updates: int
    panels: Sequence[Panel]
    note: str
    numbers: Numbers
    """`metrics.json` of its results."""
    picture: str | None


@dataclass(frozen=True)
class Facts:
    """A run."""

    title: str
    data: str | None
    """Where the images come from, as the params say; None = as this project knows it."""
    prepare: PrepareParams
    counts: Mapping[str, int]
    """Split -> how many images it has."""
    accuracy: Mapping[str, Any]
    """`evaluate.accuracy`, as the evaluation has it."""
    numbers: Numbers
    """`metrics.json` of the evaluation."""
    sets: Sequence[str]
    spaces: Sequence[str]
    scores: Mapping[str, Sequence[Score]]
    samples: Mapping[str, Sequence[Pair]]
    """Title of a set -> some of its samples."""
    failures: Sequence[Pair]
    confusions: Sequence[Confusion]
    sweep: Sequence[Line]
    copies: Numbers
    """What stage `model` found about copies of training images; empty if it did not run, or only before."""
    neighbours: str | None
    trainings: Sequence[Training]
    passports: Mapping[str, Passport]
    times: Sequence[tuple[str, float]]
    """Stages and their seconds."""
    commit: str | None
    params: str
    """The text of params.yaml."""


def read(root: Path, times: Path | None) -> Facts:
    """The facts of a repository. times: where stages noted how long they took; None = where `make demo` has them.

    ConfigError: there is no such file of times, or params.yaml is wrong. IntegrityError: samples or evaluation are
    missing or damaged, the evaluation is of other samples, the samples are of another model than the one that is there,
    or numbers of a stage are damaged. Trainings and the stage `model` are told of as far as they are there.
    """
    if times is not None and not times.is_file():
        raise ConfigError("--times", f"no file {times}", "what LDM_TIMES named in `dvc repro`", "leave it out")
    paths = config.read(PathsParams, "paths", root / config.PATHS)
    card = config.read(ModelParams, "model", root / config.PARAMS).card
    folder = root / paths.evaluation
    of_samples, sampled = samples.read(root / paths.samples)
    evaluation = artifact.read_passport(folder, metrics.KIND)
    artifact.check_input(folder, evaluation, "samples", of_samples.content_sha256)
    artifact.check_file(folder / "metrics.json", evaluation.content_sha256)
    passports = dict(_passports(root, paths))
    for name in of_samples.inputs.keys() & passports.keys():
        artifact.check_input(root / paths.samples, of_samples, name, passports[name].content_sha256)
    results = root / paths.model_results
    has_copies = _is_of(root / paths.model, of_samples)
    real = RealImages(root / paths.images, SPLITS)
    failures = mistakes.read_failures(folder / mistakes.FAILURES)
    return Facts(
        title=card.title,
        data=card.data,
        prepare=_prepare(root, root / paths.captions),
        counts={split: len(Shards(root / paths.images / split)) for split in SPLITS},
        accuracy=evaluation.config["accuracy"],
        numbers=_numbers(folder),
        sets=[name for name in SETS if name in sampled],
        spaces=evaluation.facts["feature_spaces"],
        scores=scores.read(folder),
        samples={title: list(_shown(sampled[name], real)) for name, title in shown(sampled).items()},
        failures=[_pair(sampled[each.images], each.number, real, each) for each in failures],
        confusions=scores.confusions(mistakes.read_confusion(folder / mistakes.CONFUSION)),
        sweep=guidance.read(folder / guidance.TABLE),
        copies=_numbers(results) if has_copies else {},
        neighbours=_picture(results / "neighbours.png") if has_copies else None,
        trainings=list(_trainings(root, paths)),
        passports=passports | {"samples": of_samples, "evaluation": evaluation},
        times=_times(times or root / workspace.runs(paths.runs) / TIMES),
        commit=_commit(root),
        params=(root / config.PARAMS).read_text(encoding="utf-8"),
    )


def _prepare(root: Path, captions: Path) -> PrepareParams:
    """The params that images and captions were made by: those of params.yaml may be newer, and count without captions.
    IntegrityError: the captions are of other code."""
    if not (captions / artifact.PASSPORT).exists():
        return config.read(PrepareParams, "prepare", root / config.PARAMS)
    passport = artifact.read_passport(captions, artifact.Kind("captions"))
    with artifact.fitting(captions):
        return PrepareParams.model_validate(passport.config)


def _is_of(model: Path, of_samples: Passport) -> bool:
    """Whether what stage `model` found is about these samples: the model folder is of their UNet, or was refused and
    is not there."""
    if not (model / artifact.PASSPORT).exists():
        return True
    return artifact.read_passport(model, parts.kind()).inputs.get("unet") == of_samples.inputs.get("unet")


def _numbers(folder: Path) -> Numbers:
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    try:
        found: object = json.loads(path.read_bytes())
    except ValueError as error:
        raise _torn(path, f"no JSON ({error})") from None
    if not isinstance(found, dict):
        raise _torn(path, f"a JSON {type(found).__name__}")
    return cast(Numbers, found)


def _torn(path: Path, found: str) -> IntegrityError:
    """The error of a file of results that is not as its stage wrote it."""
    return IntegrityError(str(path), found, "the file that its stage wrote", "run `dvc checkout`, or `dvc repro`")


def _shown(part: Samples, real: RealImages) -> Iterator[Pair]:
    return (_pair(part, i, real, None) for i in range(min(_NUM_SAMPLES, len(part))))


def _pair(part: Samples, number: int, real: RealImages, failure: Failure | None) -> Pair:
    prompt: Prompt = part.prompts[number]
    sample, original = (
        _source(images.thumbnail(data, _MOST_PX)) for data in (part.png(number), real.png(real.origin(prompt)))
    )
    return Pair(prompt.prompt, sample, original, failure)


def _picture(path: Path) -> str | None:
    return _source(path.read_bytes()) if path.exists() else None


def _source(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _trainings(root: Path, paths: PathsParams) -> Iterator[Training]:
    """The trainings whose curves are there and have points."""
    named = (
        ("Autoencoder", paths.autoencoder, paths.autoencoder_results, "reconstructions.png"),
        ("CLIP", paths.clip, paths.clip_results, None),
        ("UNet", paths.unet, paths.unet_results, None),
    )
    for name, folder, results, picture in named:
        tables = {"training": root / results / "curves.csv", "validation": root / results / "validation.csv"}
        if not all(path.exists() for path in tables.values()):
            continue
        panels, note = plots.curves(tables)
        steps = [x for panel in panels for series in panel.series for x, _ in series.points]
        if panels:
            shown_too = None if picture is None else _picture(root / results / picture)
            yield Training(
                name, _num_weights(root / folder), int(max(steps)), panels, note, _numbers(root / results), shown_too
            )


def _num_weights(folder: Path) -> int | None:
    path = folder / "model.safetensors"
    return sum(tensor.numel() for tensor in artifact.open_tensors(path).values()) if path.exists() else None


def _passports(root: Path, paths: PathsParams) -> Iterator[tuple[str, Passport]]:
    """Passports of the parts of the model that are there."""
    kinds = {
        paths.autoencoder: AUTOENCODER,
        paths.clip: CLIP,
        paths.embeddings: EMBEDDINGS,
        paths.unet: UNET,
    }
    for path, kind in kinds.items():
        if (root / path / "passport.json").exists():
            yield kind.name, artifact.read_passport(root / path, kind)


def _times(path: Path) -> list[tuple[str, float]]:
    """Lines of a stage and its seconds; a stage that ran twice has its last time. Other lines are left out."""
    if not path.is_file():
        return []
    found = re.findall(r"^(\w+) +(\d+\.\d+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return [(stage, float(seconds)) for stage, seconds in dict(found).items()]


def _commit(root: Path) -> str | None:
    """Commit of the repository, and whether files differ from it; None without git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
