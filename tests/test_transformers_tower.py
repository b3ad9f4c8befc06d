"""Text encoders of transformers: token states against those that the library computes from the same folder."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError, UserError
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from ldm.text.embedding.embeddings import TextEncoder
from ldm.text.embedding.tower import load_text
from ldm.text.model import encoders, transformers_tower
from ldm.text.model.encoder import Layer
from ldm.text.training.params import TransformersParams
from ldm.text.training.pretrained_tower import from_transformers
from tests.text_towers import CAPTIONS, FAMILIES, make, theirs
from tests.trained_data import UNET

READS_PADDING = ("clip", "clip_text_model", "siglip")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    return {family: make(folder / family, family) for family in FAMILIES}


def opened(folder: Path, tokenizer: str | None = None) -> transformers_tower.TransformersTower:
    params = TransformersParams(kind="transformers", path=str(folder), tokenizer=tokenizer)
    return from_transformers(params)[0]


def their_states(family: str, model: Any, tokenizer: Any, caption: str, length: int) -> tuple[list[int], Any]:
    """Tokens of a caption and the output of transformers: alone and without padding, or in a whole context."""
    ids = tokenizer(caption, truncation=True, max_length=length)["input_ids"] or [tokenizer.eos_token_id]
    padding = [tokenizer.pad_token_id] * (length - len(ids)) if family in READS_PADDING else []
    out = model(input_ids=torch.tensor([ids + padding]), output_hidden_states=True)
    return ids, out


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_states_equal_those_of_transformers(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Of every token of every caption, also when the encoder comes back from its artefact, in a batch with padding."""
    passport = opened(folders[family]).save(tmp_path / encoders.FOLDER, {})
    tower, found = load_text(tmp_path)
    assert found == passport and isinstance(tower, transformers_tower.TransformersTower)
    model, tokenizer = theirs(folders[family], family)
    tokenizer.truncation_side = "right"
    length = min(tower.context_length, 24)
    ids = tower.tokenise(CAPTIONS, length)
    states = {
        (layer, norm): tower.encode_text(ids, layer, norm)[0]
        for layer in ("last", "penultimate")
        for norm in (True, False)
    }
    _, pooled = tower.encode_text(ids, "last", True)
    norm = model.get_submodule(transformers_tower._FAMILIES[model.config.model_type].norm)
    for row, caption in enumerate(CAPTIONS):
        tokens, out = their_states(family, model, tokenizer, caption, length)
        mask = tower.mask(ids)[row]
        assert ids[row][mask].tolist() == tokens and mask[: len(tokens)].all() and not mask[len(tokens) :].any()
        expected = {
            ("last", True): out.last_hidden_state,
            ("penultimate", False): out.hidden_states[-2],
            ("penultimate", True): norm(out.hidden_states[-2]),
        }
        for key, value in expected.items():
            check_close(states[key][row][mask], value[0, : len(tokens)])
        check_close(norm(states["last", False])[row][mask], out.last_hidden_state[0, : len(tokens)])
        of_caption = out.get("pooler_output")
        of_caption = out.last_hidden_state.mean(1) if of_caption is None else of_caption
        check_close(pooled[row], torch.nn.functional.normalize(of_caption[0], dim=0))


def check_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_padding_is_as_many_tokens_as_are_asked_for_and_has_no_part_in_states(folders: dict[str, Path]) -> None:
    tower = opened(folders["t5"])
    short, long = tower.tokenise(["a star"], 5), tower.tokenise(["a star"], 40)
    assert short.shape == (1, 5) and long.shape == (1, 40)
    states = [tower.encode_text(ids, "last", True)[0][tower.mask(ids)] for ids in (short, long)]
    check_close(*states)
    assert opened(folders["siglip"]).tokenise(["a star"], 5).shape == (1, 16), "whole contexts, as it was trained"


def encoder_of(tower: transformers_tower.TransformersTower, context_tokens: int, is_masked: bool) -> TextEncoder:
    layer: Layer = "last"
    return TextEncoder(tower, layer, True, context_tokens, is_masked, torch.device("cpu"))


@torch.no_grad()
def test_the_mask_reaches_cross_attention(folders: dict[str, Path]) -> None:
    """A UNet gives the same for a caption with more padding if that is masked, and something else if it is attended."""
    unet = UNet(UNetParams.model_validate(UNET | {"context_width": 32}))
    torch.manual_seed(0)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z, time, tower = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 500.0]), opened(folders["t5"])
    for is_masked in (True, False):
        encoders_of = [encoder_of(tower, count, is_masked) for count in (12, 20)]
        narrow, wide = (unet(z, time, Condition(**encoder(["a star", ""]))) for encoder in encoders_of)
        assert ((narrow - wide).abs().max() <= 1e-4 * wide.abs().max()) == is_masked


def test_states_that_float16_cannot_hold_are_refused(folders: dict[str, Path]) -> None:
    tower = opened(folders["t5"])
    tower.model.encoder.final_layer_norm.weight.mul_(1e6)
    with pytest.raises(ConfigError, match=r"embed_text.norm.*float16"):
        encoder_of(tower, 12, False)(["a star"])


def test_weights_are_kept_in_their_number_type_and_computed_in_float32(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["llama"], tmp_path / "half")
    tensors = artifact.open_tensors(folder / artifact.WEIGHTS)
    artifact.write_tensors(folder / artifact.WEIGHTS, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    tower = opened(folder)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    tower.save(tmp_path / "kept", {})
    kept = artifact.open_tensors(tmp_path / "kept" / artifact.WEIGHTS)
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16} and "lm_head.weight" not in kept
    assert all(
        torch.equal(kept[name.removeprefix("model.")], tensor.bfloat16())
        for name, tensor in tensors.items()
        if name != "lm_head.weight"
    )


def test_its_passport_names_the_files_that_it_came_from(folders: dict[str, Path]) -> None:
    params = TransformersParams(kind="transformers", path=str(folders["t5"]), tokenizer=None)
    _, files = from_transformers(params)
    assert files == {artifact.WEIGHTS: artifact.sha256_file(folders["t5"] / artifact.WEIGHTS)}


def test_weights_and_tokenizer_may_stand_in_two_folders_as_in_those_of_diffusers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    names = ("tokenizer_config.json", "tokenizer.json")
    (tmp_path / "tokenizer").mkdir()
    weights = shutil.copytree(folders["clip_text_model"], tmp_path / "text_encoder")
    for name in names:
        (weights / name).rename(tmp_path / "tokenizer" / name)
    whole, parts = opened(folders["clip_text_model"]), opened(weights, str(tmp_path / "tokenizer"))
    assert torch.equal(whole.tokenise(CAPTIONS), parts.tokenise(CAPTIONS))


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def config_with(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return change


def tensors_with(change: Any) -> Any:
    def rewrite(folder: Path) -> None:
        tensors = dict(artifact.open_tensors(folder / artifact.WEIGHTS))
        change(tensors)
        artifact.write_tensors(folder / artifact.WEIGHTS, tensors)

    return rewrite


def cut(folder: Path) -> None:
    weights = folder / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def pickled(folder: Path) -> None:
    (folder / artifact.WEIGHTS).unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"shared.weight": _Evil()}, file)


_KEY = "encoder.block.1.layer.0.SelfAttention.q.weight"
BAD: dict[str, tuple[Any, type[UserError], str]] = {
    "no config": (without("config.json"), IntegrityError, "config.json: no such file"),
    "no weights": (without(artifact.WEIGHTS), IntegrityError, "no weights"),
    "no tokenizer": (
        without("spiece.model"),
        IntegrityError,
        "vocabulary; expected the files of a tokenizer",
    ),
    "another kind": (config_with(model_type="bert"), ConfigError, "model_type 'bert'; expected one of clip,"),
    "quantised": (config_with(quantization_config={"bits": 4}), ConfigError, "quantised"),
    "another width": (config_with(d_model=48), ConfigError, r"has shape \(.*32.*\) instead of \(.*48.*\)"),
    "a missing key": (tensors_with(lambda t: t.pop(_KEY)), ConfigError, f"no weights for {_KEY}"),
    "half-downloaded": (cut, IntegrityError, "a download that was cut"),
    "objects": (pickled, IntegrityError, "which is never run"),
    "a larger vocabulary": (
        tensors_with(lambda t: t.update({"shared.weight": t["shared.weight"][:20].clone()})),
        ConfigError,
        "shared.weight has shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, error, message = BAD[name]
    folder = shutil.copytree(folders["t5"], tmp_path / "t5")
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        opened(folder)
    assert len(str(caught.value).splitlines()) == 2, "what was found, and the fix"
    assert not (tmp_path / "touched").exists()


def test_a_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer: .*gives ids up to \d+; expected less than 20"):
        opened(make(tmp_path / "small", "gpt2", vocab_size=20), str(folders["t5"]))
    with pytest.raises(ConfigError, match="no folder"):
        opened(tmp_path / "nowhere")


def test_code_that_a_folder_names_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen3"], tmp_path / "evil")
    (folder / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    named = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config_with(auto_map=named)(folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    ours, expected = opened(folder), opened(folders["qwen3"])
    ids = expected.tokenise(CAPTIONS)
    assert torch.equal(ours.tokenise(CAPTIONS), ids) and not (folder / "ran").exists()
    assert torch.equal(ours.encode_text(ids, "last", True)[0], expected.encode_text(ids, "last", True)[0])


def test_a_damaged_artefact_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    opened(folders["t5"]).save(tmp_path, {})
    for path in (tmp_path / artifact.WEIGHTS, tmp_path / "tokenizer" / "spiece.model"):
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(IntegrityError, match=path.name):
            transformers_tower.verify(tmp_path)
        path.write_bytes(good)
    assert transformers_tower.load(tmp_path)[0].context_width == 32
