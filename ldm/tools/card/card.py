"""The text of a model card: `README.md` of a model folder, as the Hugging Face hub reads it.

Everything that is known is taken from passports and metrics; only what the owner alone can say comes from params.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.core.artifact import Passport
from ldm.corpora.params import PrepareParams
from ldm.sampling.params import DrawingParams
from ldm.tools.card import brought, sources
from ldm.tools.export import call
from ldm.tools.model.params import CardParams, MemorisationParams

GRID, NEIGHBOURS = "grid.png", "neighbours.png"
"""Pictures that the text shows."""
Numbers = Mapping[str, float | int | str]
_EXTRACTOR = "_extractor_sha256"
"""End of the name of a metric: the hash of the network of a feature space."""


@dataclass(frozen=True)
class Facts:
    """What a card tells."""

    parts: Mapping[str, Passport]
    """Passports of `unet`, `autoencoder`, `clip` and `embeddings`."""
    prepare: PrepareParams
    counts: Mapping[str, int]
    """Split -> how many images it has."""
    drawing: DrawingParams
    evaluation: Passport
    metrics: Numbers
    """`metrics.json` of the evaluation."""
    table: str
    """`table.md` of it."""
    memorisation: Numbers
    compared: MemorisationParams


def write(facts: Facts, params: CardParams) -> str:
    """The whole text."""
    source = sources.of(facts.prepare.corpus)
    parts = (
        _head(facts, params, source),
        f"# {params.title}",
        *([f"![Samples, each above its prompt]({GRID})"] if params.pictures else []),
        _summary(facts, source),
        "## How to use it",
        *_uses(facts, params.prompt or "PROMPT"),
        "## Training data",
        *_data(facts, params, source),
        "## How good it is",
        *_scales(facts),
        facts.table.strip(),
        "## Does it copy its training images?",
        *_memorisation(facts, params.pictures),
        "## Limits",
        "\n".join(f"- {limit}" for limit in [*_limits(facts), *params.limits]),
        "## What it was made from",
        *_origin(facts),
    )
    return "\n\n".join(parts) + "\n"


def _head(facts: Facts, params: CardParams, source: sources.Source) -> str:
    """Metadata for the hub. JSON is YAML, but for characters that JSON escapes as two."""
    licence = params.licence or (None if brought.weights(facts.parts) else source.licence)
    results = [
        {"type": name, "name": name.replace("_", " "), "value": facts.metrics[name]} for name in _main_numbers(facts)
    ]
    of = {"name": source.name, "type": facts.prepare.corpus.kind}
    task = {"type": "text-to-image", "name": "Text to image"}
    model = {"name": params.title, "results": [{"task": task, "dataset": of, "metrics": results}]}
    values: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "latent-diffusion"],
        "model-index": [model],
    }
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()), "---"]
    )


def _main_numbers(facts: Facts) -> list[str]:
    """Names of metrics that a reader looks for first: accuracies of whole sets, and distances."""
    names = [name for name, value in facts.metrics.items() if isinstance(value, float)]
    is_main = [
        n for n in names if n.startswith(("scene_accuracy_", "class_accuracy_", "retrieval_accuracy", "frechet_"))
    ]
    return [n for n in is_main if not n.endswith(("_low", "_high", "_floor", "_objects", "_reconstructed"))]


def _summary(facts: Facts, source: sources.Source) -> str:
    sizes = facts.prepare.corpus.sizes_px(facts.prepare.image_size_px)
    size = " or ".join(f"{width} x {height}" for height, width in sizes[:4])
    others = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
    return (
        f"A latent diffusion model that draws {source.name} from text, {size}{others} pixels. A UNet removes noise "
        f"from the latents of an autoencoder, told by {brought.text_encoder(facts.parts['clip'])} what to draw."
    )


def _uses(facts: Facts, example: str) -> Iterator[str]:
    prompt = json.dumps(example, ensure_ascii=False)
    yield "With the code that made it, from the command line or from Python:"
    yield _code("sh", f"ldm generate {shlex.quote(example)} --model FOLDER --output pictures")
    yield _code("python", f'from ldm import Pipeline\n\nimages = Pipeline.load("FOLDER")([{prompt}], seed=0)')
    yield (
        "With other tools, if it is of Stable Diffusion's topology; of a model that is not, `ldm export` says which "
        "parts have no place there. With diffusers:"
    )
    yield _code("sh", "ldm export pipeline --format diffusers --model FOLDER")
    settings = call.arguments(facts.drawing, facts.parts["unet"].config["diffusion"]["schedule"])
    yield _code("python", f"{_DIFFUSERS}\nimage = pipeline({prompt}, {settings}).images[0]")
    yield "With ComfyUI, whose folder `models/checkpoints` takes one file of all weights:"
    yield _code("sh", "ldm export model.safetensors --format single-file --model FOLDER")


_DIFFUSERS = """from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("pipeline")"""


def _data(facts: Facts, params: CardParams, source: sources.Source) -> Iterator[str]:
    yield params.data or source.text
    counts = ", ".join(f"{count} `{name}`" for name, count in facts.counts.items() if count)
    captions = "" if facts.prepare.captions == "corpus" else " They have no captions."
    yield (
        f"Images: {counts}; only those of `train` are trained on.{captions} None of them is in this folder but for "
        "what its pictures show."
    )
    if found := brought.weights(facts.parts):
        listed = "; ".join(f"its {part} ({origin})" for part, origin in found.items())
        licence = ", nor under which licence they are, which binds this model too" if params.licence is None else ""
        yield f"Others' weights are in it: {listed}. What these were trained on is **not stated** here{licence}."


def _scales(facts: Facts) -> Iterator[str]:
    right = _sentence(when_right(facts.evaluation.config["accuracy"]["kind"]))
    yield f"When is a sample right? {right} Intervals are those of 95 %, over prompts."
    yield (
        "*Seen* prompts are of kinds that training has shown, *held out* and *unseen* ones, if there are any, of kinds "
        "that it has not; *reworded* ones, if there are any, are of kinds that it has shown, in sentence forms that "
        "it has not. Beside each number of samples are those of the real images of the same prompts, which is as good "
        "as a number can be, and of these images after a round trip through the autoencoder."
    )
    names = [name.removesuffix(_EXTRACTOR) for name in facts.metrics if name.endswith(_EXTRACTOR)]
    yield "Distances are 0 between equal sets. Their features are those of:"
    yield "\n".join(f"- *{name.replace('_', ' ')}*: {_scale(name)}." for name in names)


def when_right(kind: str) -> str:
    """When a sample counts as right, by the kind of `evaluate.accuracy`."""
    match kind:
        case "shapes":
            return "a program reads the scene back from the pixels and compares it with the caption"
        case "classifier":
            return "a classifier that learned from real training images names the class of the image"
        case "retrieval":
            return (
                "a sample is right if a real image with its prompt as a caption is among those nearest to it, in the "
                "features of the run's own CLIP"
            )
        case "none":
            return "nothing says which image is right: distances alone say what samples are worth"
        case _:
            return f"the oracle `{kind}` says so"


def _scale(name: str) -> str:
    """Whose features the distances of a feature space are of, and what they can be compared with."""
    match name:
        case "own_clip":
            return "this run's own CLIP: they cannot be compared with those of another run"
        case "shapes":
            return "a small fixed network of this project for scenes of shapes: they can be compared between runs"
        case "inception":
            return "the Inception network of FID: comparable with FIDs of as many images against the same real ones"
        case "clip":
            return "a CLIP that others trained, in which CMMD is taken; comparable as FID is"
        case _:
            return "a network of that name; comparable where its `extractor_sha256` is the same"


def _memorisation(facts: Facts, has_pictures: bool) -> Iterator[str]:
    numbers, params = facts.memorisation, facts.compared
    share, low, high = (100 * float(numbers[f"memorised_share{end}"]) for end in ("", "_low", "_high"))
    most, limit = 100 * params.quantile, 100 * params.max_share
    verdict = f"With more than {limit:g} % the model would not have been written."
    if share > limit:
        verdict = f"Up to {limit:g} % are allowed; as many as here may be chance, since the interval begins below."
    yield (
        f"**{share:.1f} %** of {numbers['num_samples']} samples ({low:.1f} to {high:.1f}) are closer to a training "
        f"image than {100 - most:g} % of {numbers['num_real']} real images that no training saw; if nothing is copied, "
        f"{most:g} % are. {verdict} A sample is closer than a "
        f"real image in {100 * float(numbers['closer_than_real']):.0f} of 100 pairs; if nothing is copied, in 50."
    )
    yield (
        f"Closeness is the distance to the nearest of {numbers['num_training']} different training images, over the "
        f"mean distance to the nearest {params.num_neighbours} (Carlini et al. 2023): 0 is a copy. Half of the samples "
        f"are below {numbers['closeness_samples']:.2f}, half of the real images below {numbers['closeness_real']:.2f}. "
        f"It is measured on {params.size_px} x {params.size_px} pixels, so it finds copies of whole images, not of "
        "parts, mirrored ones, styles or faces."
    )
    if has_pictures:
        yield from _NEAREST


_NEAREST = (
    f"![The closest samples and the closest real images, each beside its nearest training image]({NEIGHBOURS})",
    "*The samples that are closest, then the real images that are, each beside its nearest training image.*",
)


def _limits(facts: Facts) -> Iterator[str]:
    tokens = facts.parts["embeddings"].facts.get("context_tokens")
    if not brought.weights(facts.parts):
        yield "It knows the words and the kinds of pictures of its captions, and no others."
    yield f"It reads {tokens} tokens of a prompt." if tokens else "It reads as much of a prompt as its CLIP does."
    yield "Other sizes than those of training give worse images, or none."
    if facts.parts["unet"].facts.get("caption_dropout") == 0:
        yield "It never learned to draw without a prompt, so classifier-free guidance needs a negative one."


def _origin(facts: Facts) -> Iterator[str]:
    rows = [(name, passport.content_sha256) for name, passport in facts.parts.items()]
    inputs = [row for passport in facts.parts.values() for row in passport.inputs.items()]
    named: dict[str, str] = {}
    for name, sha256 in [*rows, *inputs, *brought.files(facts.parts)]:  # what several parts name is listed once
        named.setdefault(sha256, name.replace("_", " "))
    yield "SHA-256 of its weights and of what they were made from, as the passports in this folder have them:"
    yield _table(("what", "SHA-256"), [(name, f"`{sha256}`") for sha256, name in named.items()])
    packages = ", ".join(f"{name} {version}" for name, version in facts.parts["unet"].packages.items())
    yield f"Made with {packages}. Who loads the folder hashes every file of weights."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
