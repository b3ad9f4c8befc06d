"""Tokenizers of the package transformers, opened from the files in a folder; no code of a folder is ever run.

Token ids are padded by -1 at the right, whatever a tokenizer pads by, so that padding is known by its id.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import IntegrityError, MachineError

FOLDER = "tokenizer"
_FILES = (
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Names of all files that tokenizers are kept in; config.json says which model they belong to."""
_VOCABULARIES = (
    {"tokenizer.json"},
    {"spiece.model"},
    {"tokenizer.model"},
    {"sentencepiece.bpe.model"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
)
"""Files that hold a vocabulary. Without them transformers may make a tokenizer of special tokens alone."""
_PADDING = -1
_UNREADABLE = (Exception,)
"""What the package tokenizers raises for files that it cannot read is of no other class."""


class Tokenizer:
    """Texts to token ids, cut at the right, with the special tokens that the tokenizer puts around them."""

    def __init__(self, folder: Path, clean: Callable[[str], str] = str) -> None:
        """clean: what becomes of a text before. IntegrityError: files are missing or damaged. MachineError: the package
        transformers is not there."""
        self._folder, self._clean = folder, clean
        where, expected = str(folder), "the files of a tokenizer"
        names = " or ".join(" + ".join(sorted(files)) for files in _VOCABULARIES)
        fix = f"fetch them all: tokenizer_config.json, and {names}"
        if not any(all((folder / name).is_file() for name in files) for files in _VOCABULARIES):
            raise IntegrityError(where, "no file with a vocabulary", expected, fix)
        tokenizers = package().AutoTokenizer
        try:
            self._own: Any = tokenizers.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._own.truncation_side = "right"
            self.ids(["a"])
        except _UNREADABLE as error:
            found = f"transformers cannot open it ({' '.join(str(error).split())[:200]})"
            raise IntegrityError(where, found, expected, fix) from None

    @property
    def kind(self) -> str:
        """Name of its class in transformers."""
        return type(self._own).__name__

    @property
    def files(self) -> list[Path]:
        """The files that it is kept in, which are there."""
        return [self._folder / name for name in _FILES if (self._folder / name).is_file()]

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text that it was made for."""
        return int(self._own.model_max_length)

    @property
    def largest_id(self) -> int:
        """The largest id that it gives."""
        return max(self._own.get_vocab().values())

    @property
    def padding_id(self) -> int:
        """What a model is given for padding."""
        named = (self._own.pad_token_id, self._own.eos_token_id)
        return next((id for id in named if id is not None), 0)

    @property
    def separator_id(self) -> int | None:
        """The id of the token between two texts, if it has one."""
        return self._own.sep_token_id

    def ids(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """The ids of each text. One without any token has one of padding that counts as its own, so that there is
        something to attend to. max_tokens: longer ones are cut; None = none is."""
        cut = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
        found = self._own([self._clean(text) for text in texts], **cut)["input_ids"]
        return [ids or [self.padding_id] for ids in found]

    def padded(self, texts: Sequence[str], max_tokens: int, width: int) -> Int[Tensor, "b {width}"]:
        """`ids` as one tensor."""
        rows = self.ids(texts, max_tokens)
        return torch.tensor([ids + [_PADDING] * (width - len(ids)) for ids in rows], dtype=torch.int64)

    def for_model(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Ids with the padding that a model knows."""
        return ids.where(is_text(ids), self.padding_id)

    def save(self, directory: Path) -> dict[str, str]:
        """Copy the files into the folder `FOLDER` of a directory; their SHA-256 by path below the directory."""
        (directory / FOLDER).mkdir(parents=True)
        for path in self.files:
            shutil.copyfile(path, directory / FOLDER / path.name)
        files = sorted((directory / FOLDER).iterdir())
        return {path.relative_to(directory).as_posix(): artifact.sha256_file(path) for path in files}


def is_text(ids: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """True for the tokens of a text, False for padding."""
    return ids != _PADDING


def package() -> Any:
    """The package transformers, which then says nothing. MachineError: it is not there."""
    try:
        import transformers
    except ImportError as error:
        where, fix = "text encoder of transformers", 'pip install "ldm[exchange]"'
        raise MachineError(where, str(error), "the package transformers", fix) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
