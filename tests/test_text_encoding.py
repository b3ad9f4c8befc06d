"""How many tokens of a caption are kept, and batches of one size."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ldm.core.errors import ConfigError
from ldm.text.embedding import shards as encoding
from ldm.text.embedding.encoder import TextEncoder
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.model import clip


def params(**changes: Any) -> EmbedTextParams:
    values = {"layer": "last", "norm": True, "context_tokens": None, "batch_size": 3, "num_captions_per_shard": 5}
    return EmbedTextParams.model_validate(values | changes)


def model(layers: int = 2, context_length: int = 20) -> clip.Clip:
    return cast(clip.Clip, SimpleNamespace(model_cfg={"text_cfg": {"layers": layers}}, context_length=context_length))


@pytest.mark.parametrize(("longest", "expected"), [(3, 8), (8, 8), (9, 16), (17, 20), (30, 20)])
def test_the_longest_caption_rounded_up_to_eight_is_kept(longest: int, expected: int) -> None:
    assert encoding.context_tokens_of(params(), model(), longest) == expected
    assert encoding.context_tokens_of(params(context_tokens=5), model(), longest) == 5


def test_what_the_encoder_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"context_tokens: 21; expected at most 20, the context length"):
        encoding.context_tokens_of(params(context_tokens=21), model(), 3)
    with pytest.raises(ConfigError, match=r"embed_text.layer: penultimate; expected last"):
        encoding.context_tokens_of(params(layer="penultimate"), model(layers=1), 3)


class Fake:
    """Token ids are text lengths; states tell the size of the batch."""

    def tokenise(self, texts: list[str], context_tokens: int) -> torch.Tensor:
        return torch.tensor([[len(text)] * context_tokens for text in texts])

    def encode_text(self, ids: torch.Tensor, layer: str, norm: bool) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.stack([ids, torch.full_like(ids, len(ids))], -1).float()
        return states, states[:, 0]


def test_every_batch_is_full_and_every_text_has_its_row() -> None:
    encoder = TextEncoder(cast(clip.Clip, Fake()), "last", True, 2, torch.device("cpu"))
    found = encoder.in_batches(["a", "bb", "ccc", "dddd"], 3)
    assert found["tokens"].shape == (4, 2, 2) and found["tokens"].dtype == torch.float16
    assert found["tokens"][:, 0].tolist() == [[1, 3], [2, 3], [3, 3], [4, 3]]
    assert found["pooled"].tolist() == [[1, 3], [2, 3], [3, 3], [4, 3]]
