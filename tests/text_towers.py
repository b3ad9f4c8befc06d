"""Tiny text encoders as transformers saves them: one of each family, with a tokenizer trained on a few captions."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

CAPTIONS = ["a small red circle above a blue square", "a star", "", "green star below a white box " * 20]
VOCABULARY = 120
_DECODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_DECODER |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "vocab_size": VOCABULARY}
_ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_IMAGES = {**_ENCODER, "image_size": 16, "patch_size": 8}
_TEXT = {**_ENCODER, "vocab_size": VOCABULARY, "projection_dim": 32, "projection_size": 32}
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "t5": ("T5ForConditionalGeneration", _T5, "spiece"),
    "umt5": ("UMT5EncoderModel", _T5, "bpe"),
    "clip": (
        "CLIPModel",
        {"text_config": {**_TEXT, **_IDS, "max_position_embeddings": 16}, "vision_config": _IMAGES},
        "bpe",
    ),
    "clip_text_model": ("CLIPTextModel", {**_TEXT, **_IDS, "max_position_embeddings": 16}, "bpe"),
    "siglip": (
        "SiglipModel",
        {"text_config": {**_TEXT, **_IDS, "max_position_embeddings": 16}, "vision_config": _IMAGES},
        "spiece",
    ),
    "gemma2": ("Gemma2ForCausalLM", {**_DECODER, **_IDS}, "bpe"),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, **_IDS}, "plain"),
    "llama": ("LlamaForCausalLM", {**_DECODER, **_IDS}, "plain"),
    "qwen3": ("Qwen3ForCausalLM", {**_DECODER, **_IDS}, "plain"),
}
"""model_type -> class that saves it, configuration, kind of tokenizer."""


def make(folder: Path, family: str, **changes: Any) -> Path:
    """Save a model of random weights and its tokenizer into a folder; returns the folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    name, config, tokenizer = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = transformers.AutoConfig.for_model(family, **(config | changes))
        model = getattr(transformers, name)(made).eval()
        for weight in model.parameters():
            # Large enough that every part shows in the states.
            weight.data.add_(torch.randn(weight.shape) * 0.1)
    model.save_pretrained(folder)
    (sentencepiece_files if tokenizer == "spiece" else byte_pair_files)(folder, ends=tokenizer == "bpe")
    return folder


def theirs(folder: Path, family: str) -> tuple[Any, Any]:
    """What transformers itself opens: the text model, in float32, and the tokenizer."""
    import transformers

    text = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "clip": "CLIPTextModel", "siglip": "SiglipTextModel"}
    model_class = getattr(transformers, text.get(family, "AutoModel"))
    model = model_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def byte_pair_files(folder: Path, ends: bool, **more: Any) -> None:
    """A tokenizer of byte pairs in tokenizer.json. ends: whether it puts special tokens around a text; without, it pads
    at the left and has no padding token, as language models do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<s>"]
    made.train_from_iterator(CAPTIONS, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special))
    if ends:
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 2), ("</s>", 1)])
    pad = {"pad_token": "</s>", "model_max_length": 77} if ends else {"padding_side": "left", "truncation_side": "left"}
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>", **pad, **more).save_pretrained(
        folder
    )


def sentencepiece_files(folder: Path, ends: bool = True) -> None:
    """spiece.model as T5 and SigLIP have it."""
    import sentencepiece

    logging.getLogger("sentencepiece").setLevel(logging.ERROR)
    (folder / "captions.txt").write_text("\n".join(CAPTIONS * 10), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "captions.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    for name in ("captions.txt", "spiece.vocab"):
        (folder / name).unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
