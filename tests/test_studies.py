"""Studies of the default model: intervals against independent ones, resuming, what runs, and what the page says."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ruamel.yaml import YAML

from ldm.compute import devices
from ldm.core import config
from ldm.core.params import MachineParams
from ldm.evaluation import metrics
from ldm.evaluation.metrics import Estimate
from ldm.sampling import samplers
from ldm.sampling.params import DrawingParams, SampleParams
from studies import guidance, intervals, page, quality, rows, study
from tests.import_closure import ROOT, STUDIES, covered, files_of, stage_scripts
from tests.stage_scripts import forget_accelerator

PIPELINE = YAML(typ="safe", pure=True).load((ROOT / STUDIES).read_text())
SCRIPTS = stage_scripts(ROOT, STUDIES)


def features(seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 5, generator=generator, dtype=torch.float64) + shift


def test_the_kernel_distance_is_the_mean_over_all_pairs_and_its_interval_the_jackknifes() -> None:
    samples, real = features(0, 0.5), features(1)

    def mean_over_pairs(kept: list[int]) -> float:
        total = 0.0
        for i in kept:
            for j in kept:
                if i != j:
                    ends = ((samples, i, samples, j), (real, i, real, j), (samples, i, real, j), (samples, j, real, i))
                    values = [float((a[k] @ b[m] / 5 + 1) ** 3) for a, k, b, m in ends]
                    total += values[0] + values[1] - values[2] - values[3]
        return total / (len(kept) * (len(kept) - 1))

    found = intervals.kernel_distance(intervals.kernel_terms(samples, real))
    every = list(range(12))
    assert found.value == pytest.approx(mean_over_pairs(every), rel=1e-9)
    without = [mean_over_pairs([j for j in every if j != i]) for i in every]
    centre = sum(without) / 12
    spread = math.sqrt(11 / 12 * sum((value - centre) ** 2 for value in without))
    assert found.high - found.value == pytest.approx(1.959964 * spread, rel=1e-6)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_the_kernel_distance_of_equal_distributions_is_0_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [intervals.kernel_distance(intervals.kernel_terms(*torch.randn(2, 60, 4, generator=generator)))
             for _ in range(200)]  # fmt: skip
    mean = sum(estimate.value for estimate in found) / 200
    spread = torch.tensor([estimate.value for estimate in found]).std() / math.sqrt(200)
    assert abs(mean) < 3 * spread
    assert sum(estimate.low <= 0 <= estimate.high for estimate in found) >= 180


def test_recall_counts_real_images_within_the_third_neighbour_of_a_sample() -> None:
    samples = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
    real = torch.tensor([[-3.0], [-3.1], [1.5], [50.0], [300.0]])  # radii: 3, 2, 2, 3, 99
    assert intervals.is_covered(real, samples).tolist() == [True, False, True, True, False]


def test_the_least_evaluations_are_those_after_which_none_is_worse() -> None:
    def better(low: float, high: float) -> Estimate:
        return Estimate((low + high) / 2, low, high, 100)

    worse, equal, above = better(-2, -1), better(-1, 1), better(1, 2)
    assert intervals.least_equal([(4, worse), (8, equal), (16, above)]) == 8
    assert intervals.least_equal([(16, equal), (4, equal), (8, worse)]) == 16, "equal by luck at 4 does not count"
    assert intervals.least_equal([(4, above), (8, worse)]) is None


def of_file() -> tuple[DrawingParams, quality.QualityParams]:
    drawing = config.read(SampleParams, "sample", ROOT / "params.yaml").drawing
    return drawing, config.read(quality.QualityParams, "quality", ROOT / study.PARAMS)


def test_quality_has_every_sampler_with_the_most_steps_that_the_evaluations_allow() -> None:
    drawing, params = of_file()
    kinds = {kind.model_fields["kind"].annotation.__args__[0] for kind in samplers.kinds()}
    assert {sampler.kind for sampler in params.samplers} == kinds
    found = quality.drawings(drawing, params, "flow")
    reference, *others = found.values()
    assert (reference.sampler.kind, reference.num_steps) == ("ddpm", 1000)
    assert len(others) > 5 * len(params.samplers)
    for drawn in others:
        more = drawn.model_copy(update={"num_steps": drawn.num_steps + 1})
        counts = [quality.evaluations(one, "flow") for one in (drawn, more)]
        assert any(counts[0] <= budget < counts[1] for budget in params.evaluations), quality.form(drawn.sampler)


@pytest.mark.parametrize(("kind", "count"), [("ddim", 5), ("heun", 8), ("dpm_solver_pp_2s", 8)])
def test_evaluations_are_counted(kind: str, count: int) -> None:
    """Heun asks once in its first step, from pure noise, and in its last; 2S likewise, having no middle there."""
    sampler = {"kind": kind, "eta": 0} if kind == "ddim" else {"kind": kind}
    assert quality.evaluations(of_file()[0].changed({"sampler": sampler, "num_steps": 5}), "flow") == count


def test_a_row_is_compared_with_the_reference_prompt_by_prompt() -> None:
    real = features(0)
    reference = {"features": features(1), "scene": torch.tensor([True] * 6 + [False] * 6)}
    better = {"features": real, "scene": torch.tensor([True] * 9 + [False] * 3)}
    for part in (reference, better):
        part["scene_strict"] = torch.zeros(12, dtype=torch.bool)
    found = quality.compared(better, reference, real)
    assert found["scene"].value == 0.75 and found["scene_difference"].value == 0.25
    assert found["kid"].value == pytest.approx(0, abs=1e-12)
    of_reference = intervals.kernel_distance(intervals.kernel_terms(reference["features"], real))
    assert found["kid_difference"].value == pytest.approx(-of_reference.value)
    assert quality.compared(reference, reference, real)["scene_difference"] == Estimate(0.0, 0.0, 0.0, 12)


def test_saturation_counts_ends_of_the_range_and_distance_from_grey() -> None:
    images = torch.full((3, 3, 2, 2), 128, dtype=torch.uint8)
    images[1] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    images[2, 0, 0, 0] = 0
    assert guidance.clipped(images).tolist() == pytest.approx([0, 1, 1 / 12])
    assert guidance.chroma(images)[:2].tolist() == pytest.approx([0, 104.55], abs=0.05)  # red of sRGB in CIELAB


def test_intervals_of_guidance_count_prompts_and_not_images() -> None:
    """Both images of a prompt are the same here, so there is no more to know than from one of each."""
    real, scenes = features(0), torch.tensor([True] * 6 + [False] * 6)
    values = features(2)[:, 0].abs()
    one = {"features": features(1), "scene": scenes, "scene_strict": ~scenes | scenes, "clipped": values}
    one["chroma"] = values
    found = guidance.measures({name: torch.cat([part, part]) for name, part in one.items()}, real)
    assert found["chroma"] == found["clipped"] == metrics.mean_interval(values)
    assert found["scene"] == metrics.mean_interval(scenes.double()), "and not cut off here"
    assert found["scene_strict"] == metrics.proportion([True] * 12), "a normal interval would have width 0"
    assert found["precision"].count == 12 and found["precision"].low >= 0


def test_an_interval_of_a_share_of_both_images_covers_it_and_ends_at_0() -> None:
    first, second = torch.tensor([True, True, False, False] * 9), torch.tensor([True, False, True, False] * 9)
    found = guidance.share(torch.cat([first, second]))
    assert found == metrics.mean_interval(torch.tensor([1.0, 0.5, 0.5, 0.0] * 9))
    rare = torch.tensor([True] + [False] * 39)
    low = guidance.share(rare)
    assert low.value == 1 / 40 and low.low == 0 < low.high
    assert guidance.share(~rare).high == 1


def test_a_study_that_is_stopped_goes_on_and_has_written_the_rows_before(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    forget_accelerator()
    accelerator = devices.start(config.read(MachineParams, "machine", ROOT / "params.yaml"))
    lab = SimpleNamespace(
        device=torch.device("cpu"),
        inputs={},
        drawing=of_file()[0],
        paths=SimpleNamespace(runs="runs"),
    )
    params = of_file()[1]
    this = study.Study("quality", params, lab, accelerator, ROOT / "studies/quality.py", tmp_path / "quality.json")
    computed: list[int] = []

    def compute(number: int) -> dict[str, torch.Tensor]:
        computed.append(number)
        if computed == [1, 2]:
            raise KeyboardInterrupt
        return {"x": torch.tensor([number])}

    def go_on() -> list[dict[str, object]]:
        this.run({"a": 1, "b": 2, "c": 3}, compute, lambda n, kept: {"number": n, "x": int(kept["x"])}, {"cases": ""})
        return json.loads(this.output.read_text())["rows"]

    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert [row["name"] for row in json.loads(this.output.read_text())["rows"]] == ["a"]
    found = go_on()
    assert computed == [1, 2, 2, 3], "the first unit is not computed again"
    assert [(row["name"], row["number"], row["x"]) for row in found] == [("a", 1, 1), ("b", 2, 2), ("c", 3, 3)]
    assert all(row["device"] for row in found)
    forget_accelerator()


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_study_depends_on_the_code_that_it_imports(stage: str) -> None:
    listed = [dep for dep in PIPELINE["stages"][stage]["deps"] if not dep.startswith("${")]
    assert listed == covered(files_of(SCRIPTS[stage], ROOT)), "run `make deps`"
    assert any(file == "studies/study.py" for file in listed)


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_study_has_its_section_its_page_and_a_file_that_git_keeps(stage: str) -> None:
    entry = PIPELINE["stages"][stage]
    assert entry["cmd"] == f"python -m studies.{stage}" and entry["wdir"] == ".."
    assert {"studies/params.yaml": [stage]} in entry["params"]
    assert entry["outs"] == [{f"docs/studies/{stage}.json": {"cache": False}}]
    assert stage in page.PICTURES and f"<!-- {stage} -->" in page.PAGE.read_text(encoding="utf-8")
    assert set(config.Document(ROOT / study.PARAMS).data) == set(SCRIPTS)


def test_the_page_says_what_the_results_say() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for name, result in page.results().items():
        assert page.rewritten(text, name, page.block(name, result)) == text, f"{name}: run `python -m studies.page`"
        assert (page.RESULTS / f"{name}.png").is_file()


def result_of_quality() -> dict[str, object]:
    def row(name: str, sampler: str, asked: int, scene: float, difference: float) -> dict[str, object]:
        kid = {"kid": [1.0, 0.9, 1.1], "kid_difference": [-difference, -difference - 0.01, -difference + 0.01]}
        scenes = {"scene": [scene, scene - 0.02, scene + 0.02]}
        scenes["scene_difference"] = [difference, difference - 0.01, difference + 0.01]
        about = {"name": name, "sampler": sampler, "num_steps": asked, "evaluations": asked, "count": 9, "device": "D"}
        return {**about, **scenes, **kid}

    found = [row("reference", "ddpm", 1000, 0.8, 0.0)]
    found += [row(f"a {n}", "a", n, 0.8 + d, d) for n, d in ((4, -0.3), (8, 0.0))]
    found += [row("b 3", "b", 3, 0.5, -0.3)]
    return {"params": {"evaluations": [4, 8]}, "rows": found}


def test_the_table_of_samplers_names_the_least_evaluations() -> None:
    text = page.block("quality", result_of_quality())
    assert "`ddpm`, 1000 steps: whole scene 80.0 (78.0 to 82.0) %" in text
    assert "| `a` | 8 | 8 |" in text and "| `b` | more than 8 | more than 8 |" in text
    assert "| `a` | 50.0 | 80.0 |" in text and "| `b` | 50.0 |  |" in text
    assert "9 images per row; computed on D." in text
    assert page.draw_quality(result_of_quality()["rows"]).axes


def test_an_estimate_survives_the_json() -> None:
    kept = Estimate(0.123456789, -1.0, 2.0, 7)
    assert rows.estimate(rows.interval(kept)) == Estimate(0.123457, -1.0, 2.0, 0)
    assert page.cell("scene", [0.5, 0.4, 0.6]) == "50.0 (40.0 to 60.0)"
    assert page.cell("chroma", [12.345, 12.0, 13.0]) == "12.3 (12 to 13)"


def test_seeds_and_studies_name_the_processor() -> None:
    assert study.device_name(torch.device("cpu")) == study.processor() and sys.platform == "linux"
