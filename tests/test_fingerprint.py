"""What a result depends on is in a fingerprint, and what it does not is no part of a run's identity."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, Field
from ruamel.yaml import YAML

from ldm.compute import fingerprint
from ldm.compute.closure import has_code
from ldm.core.config import BESIDE
from tests import training_data
from tests.import_closure import ROOT, expanded, stage_scripts
from tests.toy_training import params


class Inner(BaseModel):
    rate: float
    num_pictures: int = Field(json_schema_extra=BESIDE)


class Outer(BaseModel):
    inner: Inner
    widths: list[int]


def test_it_holds_values_inputs_code_and_packages():
    section = Outer(inner=Inner(rate=0.5, num_pictures=3), widths=[1, 2])
    found = fingerprint.of(str(ROOT / "stages/encode_latents.py"), section, {"images": "ab"})
    assert found["params.inner.rate"] == 0.5
    assert found["params.widths"] == [1, 2]
    assert found["beside.inner.num_pictures"] == 3
    assert found["inputs.images"] == "ab"
    for file in ("stages/encode_latents.py", "ldm/compute/fingerprint.py"):
        assert found[f"code.{file}"] == fingerprint.sha256_code(ROOT / file)
    assert torch.__version__.startswith(found["packages.torch"])
    json.dumps(found)


@pytest.mark.parametrize(
    ("key", "is_free"),
    [
        ("save_every_steps", True),
        ("num_kept_states", True),
        ("validate_every_steps", True),
        ("log_every_steps", True),
        ("max_nonfinite_steps", True),
        ("learning_rate", False),
        ("max_grad_norm", False),
        ("num_steps", False),
        ("seed", False),
        ("batch_size", False),
        ("ema_decay", False),
    ],
)
def test_values_that_change_no_step_are_no_part_of_the_identity(key: str, is_free: bool):
    changed = params(**{key: 0.7 if key in ("ema_decay", "learning_rate", "max_grad_norm") else 16})
    identities = [fingerprint.identity(fingerprint.of_params(each)) for each in (params(), changed)]
    assert (identities[0] == identities[1]) == is_free


def test_values_of_looking_are_no_part_of_it_either():
    unet = [training_data.unet_params(), training_data.unet_params(num_pictures=1, num_validation_samples=4)]
    autoencoder = [training_data.autoencoder_params(), training_data.autoencoder_params(num_pictures=1)]
    for pair in (unet, autoencoder):
        assert pair[0] != pair[1]
        before, after = (fingerprint.identity(fingerprint.of_params(each)) for each in pair)
        assert before == after


WORKING = [stage for stage in stage_scripts() if stage not in {"check", "model", "prepare"}]


@pytest.mark.parametrize("stage", WORKING)
def test_its_code_is_what_dvc_yaml_lists_for_the_stage(stage: str):
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
    listed = expanded([dep for dep in stages[stage]["deps"] if not dep.startswith("${")])
    code = fingerprint.of_code(stage_scripts()[stage])
    assert [fingerprint.file_of(key) for key in code] == sorted(listed, key=lambda file: (file[:7] != "stages/", file))


@pytest.mark.parametrize("stage", WORKING)
def test_an_edit_changes_it_if_the_stage_runs_that_file_and_not_otherwise(stage: str, tmp_path: Path):
    for folder in ("ldm", "stages"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "stages" / f"{stage}.py"
    before = fingerprint.of_code(script)
    inside = {tmp_path / fingerprint.file_of(key) for key in before}
    outside = {path for path in tmp_path.rglob("*.py") if has_code(path)} - inside
    assert len(outside) > 20 and inside <= {*tmp_path.rglob("*.py"), *tmp_path.rglob("*.safetensors")}
    for path in outside:
        path.write_bytes(path.read_bytes() + b"\nx = 1\n")
    assert fingerprint.of_code(script) == before
    for path in inside:
        path.write_bytes(path.read_bytes() + b"\nx = 1\n")
    after = fingerprint.of_code(script)
    assert after.keys() == before.keys() and all(after[key] != before[key] for key in before)


def test_code_around_the_work_can_be_left_out():
    script = ROOT / "stages/embed_text.py"
    section = Inner(rate=0.5, num_pictures=3)
    whole, part = (fingerprint.of(str(script), section, {}, without) for without in ((), fingerprint.AROUND))
    assert {fingerprint.file_of(key) for key in whole.keys() - part.keys()} == fingerprint.AROUND
    assert part.items() < whole.items()


CODE = '''"""A module."""

import math


class A:
    """A class."""

    size: int = 3
    """What it means."""

    def area(self, r: float) -> float:
        """Of a circle."""
        return math.pi * r**2  # exact
'''


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("  # exact", "", True),
        ("import math\n", "# why\n\n\nimport math\n", True),
        ("Of a circle.", "Of a disc.", True),
        ('"""A module."""', "", True),
        ("What it means.", "Another text.", True),
        ("math.pi * r**2", "(math.pi * r**2)", True),
        ("r**2", "r**3", False),
        ("size: int = 3", "size: int = 4", False),
        ('"""Of a circle."""', 'print("circle")', False),
    ],
)
def test_comments_docstrings_and_layout_are_no_code(tmp_path: Path, old: str, new: str, is_same: bool):
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text(CODE)
    assert old in CODE
    after.write_text(CODE.replace(old, new))
    assert (fingerprint.sha256_code(before) == fingerprint.sha256_code(after)) == is_same


def test_differences_name_both_values_params_first():
    before = {"code.a": "1" * 64, "params.rate": 0.1, "params.width": 8, "beside.every": 5}
    now = {"code.a": "2" * 64, "params.rate": 0.2, "params.width": 8, "beside.every": 6, "code.b": "3" * 64}
    found = fingerprint.differences(before, now)
    assert list(found) == ["params.rate", "code.a", "code.b"]
    assert found["code.b"] == ["(none)", "3" * 64]
    lines = fingerprint.in_words(found, most=2)
    assert lines == ["params.rate: 0.1 -> 0.2", f"code.a: {'1' * 12} -> {'2' * 12}", "and 1 more"]
