import json
import os

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from ldm.core import artifact
from ldm.core.errors import IntegrityError

NET = artifact.Kind("net")
TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3, dtype=torch.int64)}


def write(directory, **changes):
    values = {
        "kind": NET,
        "config": {"width": 3},
        "tensors": TENSORS,
        "inputs": {"images": "aa"},
        "facts": {"x": [1.5]},
    }
    return artifact.write(directory, **{**values, **changes})


def test_round_trip(tmp_path):
    written = write(tmp_path)
    passport, tensors = artifact.read(tmp_path, NET)
    assert passport == written
    assert (passport.config, passport.inputs, passport.facts) == ({"width": 3}, {"images": "aa"}, {"x": [1.5]})
    assert set(tensors) == {"a", "b"}
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )


def test_equal_content_is_equal_bytes(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", tensors=dict(reversed(TENSORS.items())))
    for name in (artifact.WEIGHTS, artifact.PASSPORT):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_views_of_one_storage_are_written_whole(tmp_path):
    whole = torch.arange(8.0)
    write(tmp_path, tensors={"left": whole[:4].reshape(2, 2).T, "right": whole[4:]})
    _, tensors = artifact.read(tmp_path, NET)
    assert tensors["left"].tolist() == [[0, 2], [1, 3]]
    assert tensors["right"].tolist() == [4, 5, 6, 7]


def test_corrupt_weights_are_refused_with_both_hashes(tmp_path):
    passport = write(tmp_path)
    path = tmp_path / artifact.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as error:
        artifact.read(tmp_path, NET)
    assert passport.content_sha256 in str(error.value)
    assert artifact.sha256_file(path) in str(error.value)


def test_missing_parts_are_refused(tmp_path):
    with pytest.raises(IntegrityError, match=r"no passport\.json"):
        artifact.read(tmp_path, NET)
    write(tmp_path)
    (tmp_path / artifact.WEIGHTS).unlink()
    with pytest.raises(IntegrityError, match="no such file"):
        artifact.read(tmp_path, NET)


def test_other_kind_and_format_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(IntegrityError, match=r"kind 'net'.*expected kind 'other'"):
        artifact.read_passport(tmp_path, artifact.Kind("other"))
    passport = json.loads((tmp_path / artifact.PASSPORT).read_text())
    artifact.write_json(tmp_path / artifact.PASSPORT, artifact.sealed({**passport, "format_version": 99}))
    with pytest.raises(IntegrityError, match="format 99"):
        artifact.read_passport(tmp_path, NET)
    (tmp_path / artifact.PASSPORT).write_text("{}")
    with pytest.raises(IntegrityError, match="not a passport"):
        artifact.read_passport(tmp_path, NET)


@pytest.mark.parametrize("field", ["config", "inputs", "facts", "packages"])
def test_a_passport_that_was_changed_is_refused_with_both_hashes(tmp_path, field):
    passport = write(tmp_path).model_dump()
    changed = passport | {field: passport[field] | {"x": "changed"}}
    artifact.write_json(tmp_path / artifact.PASSPORT, changed)
    with pytest.raises(IntegrityError) as error:
        artifact.read_passport(tmp_path, NET)
    assert passport["passport_sha256"] in str(error.value)
    assert artifact.sealed(changed)["passport_sha256"] in str(error.value)


def test_other_packages_are_a_warning(tmp_path):
    passport = write(tmp_path).model_dump()
    artifact.write_json(tmp_path / artifact.PASSPORT, artifact.sealed({**passport, "packages": {"torch": "0.1"}}))
    with pytest.warns(UserWarning, match=r"torch 0\.1 \(here"):
        artifact.read_passport(tmp_path, NET)


def test_other_input_is_refused_with_both_sides(tmp_path):
    passport = write(tmp_path)
    artifact.check_input(tmp_path, passport, "images", "aa")
    with pytest.raises(IntegrityError, match="images aa; expected images bb"):
        artifact.check_input(tmp_path, passport, "images", "bb")
    with pytest.raises(IntegrityError, match="expected captions bb"):
        artifact.check_input(tmp_path, passport, "captions", "bb")


def test_hash_of_json_ignores_order_of_keys_only():
    assert artifact.sha256_json({"a": 1, "b": [1, 2]}) == artifact.sha256_json({"b": [1, 2], "a": 1})
    assert artifact.sha256_json({"a": 1}) != artifact.sha256_json({"a": "1"})
    assert artifact.sha256_json([1, 2]) != artifact.sha256_json([2, 1])


def test_hash_of_tensors_sees_value_shape_name_and_dtype():
    base = {"x": torch.zeros(2, 3)}
    others = [
        {"y": torch.zeros(2, 3)},
        {"x": torch.zeros(3, 2)},
        {"x": torch.zeros(2, 3, dtype=torch.int32)},
        {"x": torch.ones(2, 3)},
    ]
    hashes = {artifact.sha256_tensors(tensors) for tensors in [base, *others]}
    assert len(hashes) == 5
    assert artifact.sha256_tensors(base) == artifact.sha256_tensors({"x": torch.zeros(3, 2).T})


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path)
        write(tmp_path)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        artifact.PASSPORT: mode,
        artifact.WEIGHTS: mode,
    }


def test_a_former_format_is_upgraded_step_by_step_and_a_newer_one_refused(tmp_path):
    first = artifact.Kind("net")
    second = artifact.Kind("net", (lambda config: {**config, "depth": 1},))
    third = artifact.Kind("net", (*second.upgrades, lambda config: {"size": [config["width"], config["depth"]]}))
    assert [kind.format for kind in (first, second, third)] == [1, 2, 3]
    for kind, expected in ((first, {"size": [3, 1]}), (second, {"size": [4, 1]}), (third, {"size": [9, 9]})):
        config = {"width": 3} if kind is first else {"width": 4, "depth": 1} if kind is second else {"size": [9, 9]}
        written = write(tmp_path, kind=kind, config=config)
        passport, tensors = artifact.read(tmp_path, third)
        assert passport.config == expected and torch.equal(tensors["b"], TENSORS["b"])
        assert (passport.format_version, passport.passport_sha256) == (kind.format, written.passport_sha256)
    with pytest.raises(IntegrityError, match=r"kind 'net', format 3; expected kind 'net', format 1 to 2\n.*git pull"):
        artifact.read(tmp_path, second)


def test_an_upgrade_that_finds_another_config_is_no_traceback(tmp_path):
    write(tmp_path)
    kind = artifact.Kind("net", (lambda config: {"depth": config["depth"]},))
    with pytest.raises(IntegrityError, match=r"passport.json: no key 'depth'; expected config and weights"):
        artifact.read_passport(tmp_path, kind)


def test_a_config_and_weights_that_do_not_fit_are_named(tmp_path):
    class Net(BaseModel):
        width: int

    with (
        pytest.raises(IntegrityError, match=r"passport.json: config.width: Input should be a valid integer"),
        artifact.fitting(tmp_path),
    ):
        Net.model_validate({"width": "a"})
    with (
        pytest.raises(IntegrityError, match=r"model.safetensors: Missing key\(s\) in state_dict: .*bias"),
        artifact.fitting(tmp_path),
    ):
        nn.Linear(2, 3).load_state_dict({"weight": torch.zeros(3, 2)})
