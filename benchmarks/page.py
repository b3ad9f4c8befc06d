"""Tables of docs/performance.md from the JSONs of the benchmarks: `python -m benchmarks.page`.

The text of the page is written by hand. A benchmark that has no JSON yet leaves its block empty.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks.measuring import DEVICE, RESULTS, ROOT, Row, cell
from docs.blocks import rewritten

PAGE = ROOT / "docs/performance.md"
BLOCKS = ("train_step", "operations", "sample", "attention", "data", "scaling", "pipeline", "busy")
"""The benchmarks with a block on the page, in its order."""
ON_GPUS = ("many",)
"""Those that mean nothing on a CPU; of them the page has the targets alone."""
NAMES = BLOCKS + ON_GPUS * (DEVICE.type == "cuda")
"""What there is to run on this machine."""
TARGETS_BLOCK = "targets"


class Target(NamedTuple):
    """What a ratio should be."""

    words: str
    goal: float
    floor: float | None
    """What it must be at least (or at most)."""
    less_is_better: bool = False


TARGETS: dict[str, dict[str, Target]] = {
    "cpu": {
        "train_step": Target("training step, diffusers at its best / ours", 1.25, 1.10),
        "unet_of_product": Target("operations per second of a UNet step / of the faster product", 0.60, None),
        "autoencoder_of_product": Target("the same of an autoencoder step", 0.75, None),
        "sample": Target("sampling, diffusers' loop / ours, worst of batch 1, 16 and 64", 1.3, 1.05),
        "pipeline_overhead_default": Target("DVC and launches / the default's time", 0.01, None, True),
        "pipeline_overhead_tiny": Target("DVC and launches / the time of tiny", 0.30, None, True),
        "noop_repro_seconds": Target("`dvc repro` with nothing to do, seconds", 1.5, None, True),
        "busy_step": Target("step beside a busy core / alone", 1.9, None, True),
        "two_processes_over_one": Target("two processes / one with two threads", 1.0, None),
        "data_wait": Target("waiting for data / training", 0.02, None, True),
        "attention_bf16": Target("fastest attention / chosen, bf16", 0.95, None),
        "attention_fp32": Target("fastest attention / chosen, fp32", 0.95, None),
    },
    "cuda": {
        "unet_of_product_sd1_32": Target(
            "operations per second of an SD 1 step at 32 x 32 / of the product", 0.40, None
        ),
        "unet_of_product_sd1_64": Target("the same at 64 x 64", 0.40, None),
        "train_step_sd1_32": Target("training step, diffusers at its best / ours, 32 x 32", 1.6, 1.3),
        "train_step_sd1_64": Target("the same at 64 x 64", 1.6, 1.3),
        "data_wait": Target("waiting for data / training", 0.02, None, True),
        "many_images_seconds": Target("50,000 images of 32 x 32 at 20 evaluations, seconds", 60, None, True),
    },
}
"""By device and name of a ratio."""


def results() -> dict[str, dict[str, Any]]:
    """The JSONs that are there: device -> benchmark -> what it found."""
    return {
        device: {
            name: json.loads(path.read_text(encoding="utf-8"))
            for name in BLOCKS + ON_GPUS
            if (path := RESULTS / device / f"{name}.json").is_file()
        }
        for device in TARGETS
    }


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a table; their keys are headings."""
    lines: list[list[str]] = []
    for row in rows:
        lines = lines or [list(row), ["---"] * len(row)]
        lines.append([cell(value) for value in row.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def value_of(ratio: float | list[float]) -> str:
    """A ratio, with its quartiles if it has any."""
    if isinstance(ratio, list):
        return f"{ratio[0]:.3g} ({ratio[1]:.3g} to {ratio[2]:.3g})"
    return f"{ratio:.3g}"


def verdict(ratio: float | list[float], target: Target) -> str:
    """Whether a ratio reaches its target."""
    value, sign = (ratio[0] if isinstance(ratio, list) else ratio), -1 if target.less_is_better else 1
    if sign * value >= sign * target.goal:
        return "reached"
    return "above the floor" if target.floor is not None and sign * value >= sign * target.floor else "missed"


def targets(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of targets, found values and verdicts, a table per device that has any."""
    parts: list[str] = []
    for device, benchmarks in found.items():
        ratios = {name: value for each in benchmarks.values() for name, value in each["ratios"].items()}
        rows: list[Row] = []
        for name, target in TARGETS[device].items():
            sign, is_there = "≤" if target.less_is_better else "≥", name in ratios
            floor = "" if target.floor is None else f", floor {target.floor:g}"
            shown = value_of(ratios[name]) if is_there else "not measured"
            told = verdict(ratios[name], target) if is_there else ""
            goal = f"{sign} {target.goal:g}{floor}"
            rows.append({"ratio": f"`{name}`", "of": target.words, "target": goal, "found": shown, "": told})
        parts += [markdown(rows)] if benchmarks else []
    return "\n".join(parts)


def block(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """What a benchmark found, on every device that has run it."""
    parts = [part for each in found.values() if name in each for part in _parts(each[name])]
    return "\n".join(parts)


def _parts(result: Mapping[str, Any]) -> Iterable[str]:
    for title, rows in result["tables"].items():
        yield f"{title}:\n\n{markdown(rows)}"
    yield markdown([{"ratio": f"`{name}`", "found": value_of(ratio)} for name, ratio in result["ratios"].items()])
    machine = result["machine"]
    kind = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    packages = ", ".join(f"{name} {machine[name]}" for name in ("torch", "diffusers") if name in machine)
    settings = f"{machine['threads']} of {machine['cores']} cores, MKL_CBWR {machine['MKL_CBWR']}"
    yield f"Commit {machine['commit']}; {kind}; {settings}; {packages}; load at the start {machine['load']}.\n"


def refreshed(page: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with all blocks as the JSONs say."""
    for name in BLOCKS:
        page = rewritten(page, name, block(name, found))
    return rewritten(page, TARGETS_BLOCK, targets(found))


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), results()), encoding="utf-8")


if __name__ == "__main__":
    main()
