"""How many tokens of a caption are kept, batches of one size, and real tokens alone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ldm.core.errors import ConfigError
from ldm.precompute.cache import START
from ldm.text.embedding import shards as encoding
from ldm.text.embedding.embeddings import TextEncoder
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.model.encoder import TextModel


def params(**changes: Any) -> EmbedTextParams:
    stored = {"padding": "attended", "train_split": {"kind": "stored"}}
    values = {"layer": "last", "norm": True, "context_tokens": None, "batch_size": 3, **stored}
    return EmbedTextParams.model_validate(values | changes)


def model(layers: int = 2, context_length: int = 20) -> TextModel:
    return cast(TextModel, SimpleNamespace(num_layers=layers, context_length=context_length))


@pytest.mark.parametrize(("longest", "expected"), [(3, 8), (8, 8), (9, 16), (17, 20), (30, 20)])
def test_the_longest_caption_rounded_up_to_eight_is_kept(longest: int, expected: int) -> None:
    assert encoding.context_tokens_of(params(), model(), longest) == expected
    assert encoding.context_tokens_of(params(context_tokens=5), model(), longest) == 5


def test_what_the_encoder_has_not_is_refused() -> None:
    encoding.check_fits(params(context_tokens=20), model())
    with pytest.raises(ConfigError, match=r"context_tokens: 21; expected at most 20, the context length"):
        encoding.check_fits(params(context_tokens=21), model())
    with pytest.raises(ConfigError, match=r"embed_text.layer: penultimate; expected last"):
        encoding.check_fits(params(layer="penultimate"), model(layers=1))


class Fake:
    """Tokens of a text: start, one of id 0 ("!") for each character after the first, end. States tell the length of
    the text, the size of the batch and the place."""

    def tokenise(self, texts: list[str], context_tokens: int) -> torch.Tensor:
        ids = torch.zeros(len(texts), 6, dtype=torch.int64)
        ids[:, 0] = 8
        for row, text in zip(ids, texts, strict=True):
            row[min(max(len(text), 1), context_tokens - 1)] = 9
        return ids

    def mask(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True)

    def encode_text(self, ids: torch.Tensor, layer: str, norm: bool) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(ids.shape[1]).expand(ids.shape)
        lengths = ids.argmax(1, keepdim=True).expand(ids.shape)
        states = torch.stack([lengths, torch.full_like(ids, len(ids)), places], -1).float()
        return states, states[:, 0, :2]


def fake(is_masked: bool) -> TextEncoder:
    return TextEncoder(cast(TextModel, Fake()), "last", True, 4, is_masked, torch.device("cpu"))


def test_every_batch_is_full_and_every_text_has_its_row() -> None:
    found = fake(False).in_batches(["a", "bb", "ccc", "dddd"], 3)
    assert found["tokens"].shape == (4, 4, 3) and found["tokens"].dtype == torch.float16
    assert found["tokens"][:, 0].tolist() == [[1, 3, 0], [2, 3, 0], [3, 3, 0], [3, 3, 0]]
    assert found["pooled"].tolist() == [[1, 3], [2, 3], [3, 3], [3, 3]]


def test_of_masked_padding_nothing_is_kept() -> None:
    found = fake(True).in_batches(["a", "bb", "ccc", "dddd"], 3)
    assert found[START].tolist() == [0, 2, 5, 9, 13], "with the end token; the last one is cut"
    assert found["tokens"][:, 2].tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3]
    parts = fake(True)(["a", "bb"])
    assert parts["mask"].tolist() == [[True, True, False, False], [True, True, True, False]]
    assert not parts["tokens"][~parts["mask"]].any()
    assert torch.equal(parts["tokens"][parts["mask"]][:, 2].half(), found["tokens"][:5, 2])
