"""The page: facts in words and pictures, laid out by `page.html`."""

import re
from collections.abc import Sequence
from importlib import resources

from ldm.evaluation import guidance
from ldm.tools.card import card, sources
from ldm.tools.report import scores
from ldm.tools.report.facts import Facts, Training
from ldm.training import plots
from ldm.training.plots import Panel


def write(facts: Facts) -> str:
    """The whole page. Equal facts give equal text."""
    from jinja2 import Environment, StrictUndefined

    template = (resources.files("ldm.tools.report") / "page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sweep = [line for line in facts.sweep if line.points]
    return environment.from_string(template).render(
        facts=facts,
        source=_without_markdown(facts.data or sources.of(facts.prepare.corpus).text),
        summary=_summary(facts),
        tiles=_tiles(facts),
        right=card.when_right(facts.accuracy["kind"]),
        controls=scores.controls(facts.numbers, facts.accuracy),
        distances=list(scores.distances(facts.numbers, facts.sets, facts.spaces)),
        sweep=_charts(guidance.panels(sweep), "sweep"),
        sweep_note=guidance.note(sweep),
        curves={training.name: _charts(training.panels, training.name) for training in facts.trainings},
        packages=facts.passports["evaluation"].packages,
    )


def _without_markdown(text: str) -> str:
    """Links as words and address, and stress as plain text."""
    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"\1 (\2)", text).replace("**", "")


def _summary(facts: Facts) -> str:
    """What was trained on what, in a sentence or two."""
    sizes = facts.prepare.corpus.sizes_px(facts.prepare.image_size_px)
    size = " or ".join(f"{width} x {height}" for height, width in sizes[:3]) + (" or others" if len(sizes) > 3 else "")
    captions = "with their captions" if facts.prepare.captions == "corpus" else "without captions"
    trained = [_trained(training) for training in facts.trainings]
    what = f" Trained: {'; '.join(trained)}." if trained else ""
    return (
        f"A latent diffusion model of {sources.of(facts.prepare.corpus).name}, {size} pixels, from "
        f"{facts.counts['train']} images {captions}.{what}"
    )


def _trained(training: Training) -> str:
    weights = "" if training.num_weights is None else f" of {training.num_weights / 1e6:.1f} million weights"
    return f"{training.name}{weights}, {training.num_updates} updates"


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The numbers that a reader looks for first: what, value, what stands beside it."""
    tiles: list[tuple[str, str, str]] = []
    for name, found in facts.scores.items():
        main = found[0]
        beside = "" if main.real is None else f"; real images {main.real}"
        tiles.append((f"{main.name}, {name} prompts", str(main.samples), f"{main.samples.interval}{beside}"))
    if not facts.scores:
        for label, name, value, floor in list(scores.distances(facts.numbers, facts.sets, facts.spaces))[:3]:
            tiles.append((f"{label}, {name} prompts", value, f"real images {floor}"))
    if facts.copies:
        share, low, high = (100 * float(facts.copies[f"memorised_share{end}"]) for end in ("", "_low", "_high"))
        tiles.append(("possible copies of training images", f"{share:.1f} %", f"{low:.1f} to {high:.1f} %"))
    return tiles


def _charts(panels: Sequence[Panel], name: str) -> list[str]:
    return [plots.svg(panel, f"{name.lower()}-{i}") for i, panel in enumerate(panels)]
