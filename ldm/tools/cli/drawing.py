"""What all commands that draw share: prompts, settings, and loading the models."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.core.errors import ConfigError
from ldm.sampling import prompts, samplers
from ldm.sampling.params import DrawingParams
from ldm.tools.cli import options as forms
from ldm.tools.cli import seeds
from ldm.tools.cli.colours import painted
from ldm.tools.model.parts import Parts

if TYPE_CHECKING:
    from ldm.tools.pipeline import Pipeline

_MAX_IMAGES = 10**6
_NUM_HINTS = 12


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Options that say how many images of what."""
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help='"" = no caption')
    add("--prompts-file", metavar="FILE", help="UTF-8, one prompt per line, instead of arguments; - = standard input")
    add("--num-images", type=forms.whole(1, _MAX_IMAGES), default=1, metavar="N", help="images per prompt (1)")
    add(
        "--start-number",
        type=forms.whole(0, 10**9),
        default=0,
        metavar="N",
        help="noise of the first image (0), and the number of its file unless higher ones are there: with 3 it is \
image 3 of a call from 0, up to rounding; in every bit if it has the same place in a batch of the same size",
    )
    seeds.add(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option per field of a drawing but the seed, `--eta`, and the device."""
    forms.add_fields(parser, DrawingParams, skipped=("seed",))
    parser.add_argument("--eta", type=float, metavar="X", help="eta of the sampler, for one that has it")
    add_model(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that say which model draws, and on which device."""
    about = (
        "a model folder (data/model, or a copy of it), whose settings count; default: the artefacts of the repository"
    )
    parser.add_argument("--model", type=Path, default=Path(), metavar="DIR", help=f"{about} in the working folder")
    parser.add_argument(
        "--adapter",
        type=_adapter,
        action="append",
        default=[],
        dest="adapters",
        metavar="PATH[,scale=X]",
        help="a LoRA of the UNet: the folder `adapter` of a fine-tuned UNet, a folder of peft, or a file of peft, \
diffusers or kohya; scale 1 = as trained; several may be given, and scales of the same one add up",
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option that names the device."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")


def _adapter(text: str) -> tuple[str, float]:
    """A path and its scale."""
    path, has_scale, scale = text.rpartition(",scale=")
    if not has_scale:
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found scale {scale!r}; expected a number, as in {path},scale=0.5")
    return path, value


def texts_of(options: argparse.Namespace, is_needed: bool = True) -> list[str]:
    """The prompts of the images, in order; no caption, if there is none and none is needed. ConfigError: none is there
    but one is needed, or some are arguments and others in a file."""
    if not is_needed and (options.prompts, options.prompts_file) == ([], None):
        return [""] * options.num_images
    fix = "give prompts as arguments, or in a file by --prompts-file"
    if bool(options.prompts) == (options.prompts_file is not None):
        found = "prompts as arguments and in a file" if options.prompts else "no prompt"
        raise ConfigError(f"ldm {options.name}", found, "one or the other", fix)
    texts = prompts.texts_of(options.prompts) if options.prompts else prompts.read(options.prompts_file)
    return [text for text in texts for _ in range(options.num_images)]


def settings_of(options: argparse.Namespace, drawing: DrawingParams) -> dict[str, Any]:
    """The settings that were given as options. ConfigError: together with those of `drawing` they are illegal."""
    settings = forms.given(options, DrawingParams)
    if options.eta is not None:
        sampler: dict[str, Any] = settings.get("sampler") or drawing.sampler.model_dump()
        _check_eta(sampler["kind"])
        settings["sampler"] = {**sampler, "eta": options.eta}
    drawing.changed(settings)
    return settings


def by_seed(options: argparse.Namespace, settings: dict[str, Any], drawing: DrawingParams) -> list[dict[str, Any]]:
    """The settings once per seed that was given. ConfigError: a seed is illegal."""
    if options.seeds is None:
        return [settings]
    for seed in (min(options.seeds), max(options.seeds)):
        drawing.changed({**settings, "seed": seed})
    return [{**settings, "seed": seed} for seed in options.seeds]


def labels(texts: list[str], runs: list[dict[str, Any]]) -> list[str]:
    """What is printed beside each image: its prompt, and its seed if there are several."""
    if len(runs) == 1:
        return texts
    return [f"{text}  (seed {run['seed']})" for run in runs for text in texts]


def _check_eta(kind: str) -> None:
    names = {forms.forms(model)[0].split(",")[0]: model for model in samplers.kinds()}
    if kind in names and "eta" not in names[kind].model_fields:
        having = [name for name, model in names.items() if "eta" in model.model_fields]
        fix = "name one of these by --sampler, or leave --eta out"
        raise ConfigError("--eta", f"sampler {kind}, which has no eta", f"one of {', '.join(having)}", fix)


def load(options: argparse.Namespace, parts: Parts, num_threads: int | None = None) -> "Pipeline":
    """Load the pipeline with as many threads as the stages use, unless `num_threads` is given.

    The last bits of an image depend on the number of threads.
    """
    import torch

    from ldm.compute import cores
    from ldm.tools import pipeline

    torch.set_num_threads(num_threads or cores.threads(parts.machine))
    found = pipeline.Pipeline.load(parts.root, options.device)
    if not options.adapters:
        return found
    from ldm.tools.adapters import adapted

    scales: dict[str | Path, float] = {}
    for path, scale in options.adapters:
        scales[path] = scales.get(path, 0.0) + scale
    return adapted(found, scales)


def hint(pipeline: "Pipeline", texts: list[str]) -> None:
    """Print the words of prompts that no caption has."""
    unknown = pipeline.unknown_words(texts)
    if unknown:
        more = f" and {len(unknown) - _NUM_HINTS} more" if len(unknown) > _NUM_HINTS else ""
        found = f"no training caption has: {', '.join(unknown[:_NUM_HINTS])}{more}"
        print(painted("hint:", "yellow", sys.stderr), found, file=sys.stderr)
