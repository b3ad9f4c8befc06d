"""Weights that others saved are read as libraries write them; what is damaged, or more than tensors, is refused."""

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.core.errors import IntegrityError
from ldm.core.hashes import sha256_file
from ldm.exchange import files

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4, dtype=torch.bfloat16)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def small() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_checkpoint_of_torch_is_read_by_its_content_and_not_by_its_name(
    tmp_path: Path, wrapper: str | None, zipped: bool
) -> None:
    path = tmp_path / "weights.safetensors"
    content = OrderedDict(TENSORS)
    saved = content if wrapper is None else {wrapper: content, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    found = files.read(path)
    assert same(found.tensors, TENSORS) and found.config is None
    assert found.files == {path.name: sha256_file(path)} and found.sha256 == sha256_file(path)


def test_a_file_states_a_config_if_it_is_of_an_export_here(tmp_path: Path) -> None:
    path, config = tmp_path / "model.safetensors", {"norm_num_groups": 16}
    for header, expected in (
        ({"ldm": json.dumps({"vae": config})}, config),
        ({"ldm": json.dumps({"vae": 16})}, None),
        ({"ldm": "[]"}, None),
        ({"ldm": "{"}, None),
        ({"format": "pt"}, None),
        (None, None),
    ):
        save_file(TENSORS, path, header)
        assert files.read(path, "vae").config == expected
        assert files.read(path, "unet").config is None and files.read(path).config is None


def test_safetensors_are_read_by_their_content(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.ckpt")
    assert same(files.read(tmp_path / "weights.ckpt").tensors, TENSORS)


@pytest.mark.parametrize(
    "way", [{}, {"variant": "fp16"}, {"safe_serialization": False}, {"max_shard_size": "5KB"}], ids=str
)
def test_a_folder_is_read_as_diffusers_writes_it_alone_or_in_a_pipeline(tmp_path: Path, way: dict[str, Any]) -> None:
    model = small()
    model.save_pretrained(tmp_path / "pipeline/vae", **way)
    for folder, part in (("pipeline", "vae"), ("pipeline/vae", None), ("pipeline/vae", "vae")):
        found = files.read(tmp_path / folder, part)
        assert same(found.tensors, dict(model.state_dict()))
        assert found.config is not None and found.config["block_out_channels"] == [8]
        assert len(found.files) == (1 if "max_shard_size" not in way else 10)
        assert found.files == {
            file.name: sha256_file(file) for file in (tmp_path / "pipeline/vae").iterdir() if file.suffix != ".json"
        }
    assert files.read(tmp_path / "pipeline/vae").sha256 == files.read(tmp_path / "pipeline", "vae").sha256


def test_full_precision_is_preferred(tmp_path: Path) -> None:
    small().half().save_pretrained(tmp_path, variant="fp16")
    model = small()
    model.save_pretrained(tmp_path)
    assert same(files.read(tmp_path).tensors, dict(model.state_dict()))


class Harm:
    """What a pickle can do to whoever reads it."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (eval, ("open('harm', 'w').close()",))


HTML = b"<!DOCTYPE html><html><body>Not found</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a file that starts with nothing"),
        (HTML, r"a file that starts with '<!DOCTYPE html><'"),
        (POINTER, "a pointer of Git LFS.*git lfs pull"),
        (b"\x08\0\0\0\0\0\0\0{garbage", "no whole safetensors file"),
        (b"PK\x03\x04 and no archive", "no whole checkpoint of torch"),
        (b"\x80\x02 and no pickle", "a pickle that holds objects or code"),
    ],
)
def test_what_is_no_weights_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    check_refused(path, said)


def check_refused(path: Path, said: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        files.read(path)
    line, fix = str(caught.value).splitlines()
    assert caught.value.exit_code == 4 and line.startswith(f"{path}: ") and fix.startswith("fix: ")
    assert re.search(said, f"{line} {fix}"), caught.value


@pytest.mark.parametrize("saved", [Harm(), {"state_dict": TENSORS, "callbacks": Harm()}, nn.Linear(2, 2)])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: object) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(saved, tmp_path / "model.ckpt")
    check_refused(tmp_path / "model.ckpt", r"objects or code \([\w.]+\), which is never run.*as \.safetensors")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("saved", "said"), [([TENSORS], "a list; expected tensors by name"), ({"epoch": 1}, r"without tensors \(epoch\)")]
)
def test_a_checkpoint_without_tensors_by_name_is_refused(tmp_path: Path, saved: object, said: str) -> None:
    torch.save(saved, tmp_path / "model.pt")
    check_refused(tmp_path / "model.pt", said)


def test_a_download_that_was_cut_says_how_much_is_there(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    save_file(TENSORS, whole)
    content, path = whole.read_bytes(), tmp_path / "model.safetensors"
    for length in (len(content) - 1, 60, 20):
        path.write_bytes(content[:length])
        check_refused(path, f"{length} of the \\d+ bytes that its header promises")
    path.write_bytes(content[: len(content) - 1])
    check_refused(path, f"of the {len(content)} bytes")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_checkpoints_are_refused_or_read_but_never_a_traceback(tmp_path: Path, zipped: bool) -> None:
    whole = tmp_path / "whole"
    torch.save({"state_dict": TENSORS}, whole, _use_new_zipfile_serialization=zipped)
    content, path = whole.read_bytes(), tmp_path / "model.ckpt"
    refused = 0
    for i in range(0, len(content), 7):
        for damaged in (content[:i], content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :]):
            path.write_bytes(damaged)
            try:
                files.read(path)
            except IntegrityError:
                refused += 1
    assert refused > len(content) // 7, "every cut, and more"


def test_folders_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    check_refused(tmp_path / "none", "no such file or folder.*dvc pull")
    with pytest.raises(
        IntegrityError, match=r"config\.json: no such file, but nothing; expected a folder as diffusers"
    ):
        files.read(tmp_path)
    folder = tmp_path / "vae"
    small().save_pretrained(folder, max_shard_size="5KB")
    shard = next(folder.glob("*-00002-of-*"))
    shard.rename(tmp_path / "elsewhere")
    check_refused(folder, f"no {shard.name}; expected all 10 files")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    for text in ("{}", '{"weight_map": {"a": "../../elsewhere"}}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(IntegrityError, match="no weight_map; expected the names of files beside it"):
            files.read(folder)
    index.unlink()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    check_refused(folder, "no weights, but config.json; expected weights, such as diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps("text")])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"config\.json: (no JSON|a JSON \w+).*expected a JSON object"):
        files.read(tmp_path)
