"""The text tower without open_clip, against open_clip's own."""

import json
import subprocess
import sys

import pytest
import torch

from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.text.embedding.tower import TextTower, load_text
from ldm.text.model import clip
from tests.test_clip import CAPTIONS, built

TEXTS = [*CAPTIONS, "!!! ?! wörter 圆 " * 9]


def custom_causal():
    """A causal tower in a model of open_clip that keeps it apart, as some of its architectures do."""
    model = built(causal=False)
    cfg = json.loads(json.dumps(model.model_cfg))
    cfg["text_cfg"]["no_causal_mask"] = False
    again = clip.Clip(clip._model(cfg), cfg, model.preprocess, model.merges)
    again.model.load_state_dict(model.model.state_dict())
    return again.eval()


def quick():
    model = built()
    cfg = model.model_cfg | {"quick_gelu": True}
    again = clip.Clip(clip._model(cfg), cfg, model.preprocess, model.merges)
    again.model.load_state_dict(model.model.state_dict())
    return again.eval()


MODELS = {
    "causal": lambda: built(layers=3),
    "bidirectional": lambda: built(causal=False),
    "custom and causal": custom_causal,
    "quick": quick,
    "all merges": lambda: built(num_merges=None),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", ["last", "penultimate"])
@torch.no_grad()
def test_states_and_features_equal_open_clips_up_to_rounding(tmp_path, name, layer):
    """In every bit with MKL's own choice of code; its common code (MKL_CBWR=COMPATIBLE) adds in another order where
    open_clip lays out its matrices otherwise."""
    whole = MODELS[name]()
    passport = whole.save(tmp_path, {}, {})
    light, found = load_text(tmp_path)
    assert found == passport and isinstance(light.model, TextTower)
    assert light.num_tokens(TEXTS).tolist() == whole.num_tokens(TEXTS).tolist()
    for norm in (True, False):
        ids, kept = whole.tokenise(TEXTS, 12), light.tokenise(TEXTS, 12)
        assert torch.equal(kept, ids[:, : kept.shape[1]])
        assert kept.shape[1] == (12 if light.model.is_causal else whole.context_length)
        (tokens, pooled), expected = light.encode_text(kept, layer, norm), whole.encode_text(ids, layer, norm)
        for ours, theirs in ((tokens, expected[0][:, : kept.shape[1]]), (pooled, expected[1])):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_an_option_that_only_open_clip_knows_is_left_to_it(tmp_path):
    model = built()
    cfg = model.model_cfg | {"text_cfg": model.model_cfg["text_cfg"] | {"ls_init_value": 0.5}}
    clip.Clip(clip._model(cfg), cfg, model.preprocess, model.merges).save(tmp_path, {}, {})
    assert not isinstance(load_text(tmp_path)[0].model, TextTower)


def test_damaged_weights_and_merges_are_refused(tmp_path):
    built().save(tmp_path, {}, {})
    for name in (artifact.WEIGHTS, clip.MERGES):
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(IntegrityError, match=name):
            load_text(tmp_path)
        (tmp_path / name).write_bytes(good)


def test_reading_captions_imports_no_package_of_open_clip(tmp_path):
    built().save(tmp_path, {}, {})
    program = f"""
import sys
from pathlib import Path
from ldm.text.embedding.tower import load_text
model, _ = load_text(Path({str(tmp_path)!r}))
model.encode_text(model.tokenise(["a star"]), "last", True)
sys.exit(" ".join({{"open_clip", "timm", "torchvision", "transformers", "torch._dynamo"}} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
