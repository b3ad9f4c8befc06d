import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.core import config
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.images import decode_png
from ldm.core.shards import SPLITS, Shards, write
from ldm.sampling import plan, samples
from ldm.sampling.origin import Origin
from ldm.sampling.params import SampleParams
from tests.import_closure import ROOT
from tests.trained_data import CHANGES, DRAWING

PARAMS = config.read(SampleParams, "sample", ROOT / "params.yaml")


def params(seed: int = 3, **changes) -> SampleParams:
    changes["drawing"] = PARAMS.drawing.changed(DRAWING | {"seed": seed}).model_dump()
    return SampleParams.model_validate(PARAMS.model_dump() | CHANGES["sample"] | changes)


def captions(folder: Path, **counts: int) -> dict[str, Shards]:
    for split in SPLITS:
        told = [
            (f"{split}-{i}", json.dumps({"captions": [f"{split} {i}", "other"], "claims": [{"count": i}, None]}))
            for i in range(counts.get(split, 0))
        ]
        write(folder / split, [(key, {"json": text.encode()}) for key, text in told], 100)
    return {split: Shards(folder / split) for split in SPLITS}


def value(name: str, i: int) -> int:
    """The grey of image i of a set."""
    return i + (100 if name == "held_out" else 0)


def pictures(unit: plan.Unit) -> plan.Pictures:
    greys = torch.tensor([value(unit.part.name, i) for i in unit.rows], dtype=torch.uint8)
    numbers = [prompt.prompt_number for prompt in unit.prompts]
    origins = Origin.of_batch([prompt.prompt for prompt in unit.prompts], numbers, {}, {})
    return greys.reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4), origins


def test_prompts_are_first_captions_of_distinct_samples_of_their_split(tmp_path):
    sets = plan.choose(captions(tmp_path, train=5, val=20, reworded=9, unseen=12, held_out=8), params())
    assert [part.name for part in sets] == ["held_out", "unseen", "reworded", "seen", "sweep_1", "sweep_2.5"]
    assert [part.guidance_scale for part in sets] == [PARAMS.drawing.guidance_scale] * 4 + [1, 2.5]
    assert [len(part.prompts) for part in sets] == [6, 5, 4, 8, 4, 4]
    held_out, unseen, reworded, seen, sweep, again = (part.prompts for part in sets)
    assert sweep == again
    assert {prompt.split for prompt in held_out} == {"held_out"} and {prompt.split for prompt in seen} == {"val"}
    assert {prompt.split for prompt in reworded} == {"reworded"}
    assert {prompt.split for prompt in [*unseen, *sweep]} == {"unseen"}
    assert not {prompt.key for prompt in unseen} & {prompt.key for prompt in sweep}
    assert [prompt.prompt_number for prompt in [*held_out, *unseen, *seen, *reworded, *sweep]] == list(range(27))
    for prompt in [*held_out, *unseen, *reworded, *seen, *sweep]:
        number = int(prompt.key.split("-")[1])
        assert prompt.prompt == f"{prompt.split} {number}" and prompt.claim == {"count": number}


def test_settings_are_chosen_without_a_look_at_held_out_prompts(tmp_path):
    sets = plan.choose(captions(tmp_path, train=5, val=20, unseen=12, held_out=8), params(num_prompts_held_out=0))
    assert [part.name for part in sets] == ["unseen", "seen", "sweep_1", "sweep_2.5"]
    plan.write(tmp_path / "samples", sets, pictures, params(), {})
    assert list(samples.shown(samples.read(tmp_path / "samples")[1])) == ["seen", "unseen"]


def test_scales_whose_sets_would_share_a_name_are_refused():
    for scales in ([2, 2], [2, 2.0000001]):
        with pytest.raises(ValueError, match="name one twice, to six digits"):
            params(sweep={"guidance_scales": scales, "num_prompts": 4})
    assert params(sweep={"guidance_scales": [2, 2.00001], "num_prompts": 4}).sweep.guidance_scales == [2, 2.00001]


def test_without_held_out_samples_the_sets_share_validation(tmp_path):
    splits = captions(tmp_path, train=50, val=20, unseen=0, held_out=0)
    sets = {part.name: part.prompts for part in plan.choose(splits, params())}
    keys = [prompt.key for name in ("held_out", "seen", "sweep_1") for prompt in sets[name]]
    assert len(set(keys)) == 18 and all(key.startswith("val-") for key in keys)
    seen = plan.choose(splits, params(seen_split="train"))[1].prompts
    assert all(prompt.key.startswith("train-") for prompt in seen)
    numbers = sorted(int(prompt.key.split("-")[1]) for prompt in seen)
    assert numbers[-1] > 25, "prompts stand for the whole split"
    few = captions(tmp_path / "few", train=9, val=20, unseen=0, held_out=0)
    assert len(plan.choose(few, params(seen_split="train"))[1].prompts) == 4, "half are left for the reference"


def test_sets_share_a_split_that_is_too_small_and_take_two_at_least(tmp_path):
    splits = captions(tmp_path, train=5, val=9, unseen=0, held_out=8)
    sets = plan.choose(splits, params())
    assert [len(part.prompts) for part in sets] == [6, 6, 3, 3]  # 8 + 4 are asked of the 9
    assert len({prompt.key for part in sets[:3] for prompt in part.prompts}) == 15
    with pytest.raises(ConfigError, match="50 prompts asked of val, which gives 9 at most: 0 for sweep"):
        plan.choose(splits, params(num_prompts_seen=46))
    with pytest.raises(ConfigError, match="of train, which gives 1 at most: 1 for seen"):
        plan.choose(captions(tmp_path / "few", train=3, val=9, unseen=0, held_out=8), params(seen_split="train"))


def test_two_seeds_are_compared_on_the_same_prompts(tmp_path):
    splits = captions(tmp_path, train=5, val=20, unseen=12, held_out=8)
    assert plan.choose(splits, params(seed=0)) == plan.choose(splits, params(seed=1))


@pytest.fixture
def written(tmp_path) -> tuple[Path, list[plan.PromptSet]]:
    sets = plan.choose(captions(tmp_path / "captions", train=5, val=20, unseen=12, held_out=8), params())
    plan.write(tmp_path / "samples", sets, pictures, params(), {"unet": "1" * 64})
    return tmp_path / "samples", sets


def test_samples_remember_image_prompt_and_origin(written):
    folder, sets = written
    passport, found = samples.read(folder)
    assert list(found) == ["held_out", "unseen", "seen", "sweep_1", "sweep_2.5"]
    assert passport.inputs == {"unet": "1" * 64}
    for part in sets:
        assert found[part.name].prompts == part.prompts
        assert found[part.name].guidance_scale == part.guidance_scale
        pngs = [found[part.name].png(i) for i in range(len(part.prompts))]
        assert [int(decode_png(png)[0, 0, 0]) for png in pngs] == [value(part.name, i) for i in range(len(pngs))]
        assert [Origin.read(png, "").prompt for png in pngs] == [prompt.prompt for prompt in part.prompts]
    assert sorted(path.name for path in folder.iterdir()) == [*sorted([*found, "passport.json"])]


def test_a_set_of_another_run_is_refused(written):
    folder, _ = written
    index = (folder / "seen" / "index.json").read_text()
    (folder / "seen" / "index.json").write_text(index + " ")
    with pytest.raises(IntegrityError, match="seen"):
        samples.read(folder)


def test_the_grid_shows_seen_rows_above_held_out_rows(written):
    folder, _ = written
    grid = np.asarray(plan.grid(folder, params(num_grid_columns=3, num_grid_rows=2)))
    step_x, step_y = grid.shape[1] // 3, grid.shape[0] // 4
    greys = grid[step_y // 4 :: step_y, step_x // 2 :: step_x, 0]
    assert greys.tolist() == [[0, 1, 2], [3, 4, 5], [100, 101, 102], [103, 104, 105]]
