"""Words that a corpus does not have."""

import time

import pytest

from ldm.corpora import spelling
from ldm.text.embedding.words import unknown_words, words_of

CAPTIONS = ["A small red circle, above a blue-green square", "a café (closed)", "it's a star"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a cat sitting on a RED circle", ["cat", "sitting", "on"]),
        ("a red circle's square. (Closed!) blue, green", []),
        ("a blue_green CAFE\u0301", []),
        ("'dog' “cow” cat's cat 3", ["dog", "cow", "cat"]),
        ("", []),
        ("ed ircl", ["ed", "ircl"]),
    ],
)
def test_words_that_no_caption_has(prompt, words):
    assert unknown_words([prompt, prompt], CAPTIONS) == words


def test_a_word_is_known_however_it_is_typed() -> None:
    captions = ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 caf\u00e9"]
    typed = "cafe\u0301 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u200f"
    assert unknown_words([spelling.clean(typed)], captions) == []


def test_words_of_a_large_corpus_are_found_quickly():
    captions = [f"a small {colour} circle above a large {colour} square" for colour in ("red", "blue")] * 100_000
    start = time.process_time()
    assert unknown_words(["a cat"] * 1000, captions) == ["cat"]
    assert time.process_time() - start < 1.5


def test_the_words_of_captions_stand_for_the_captions() -> None:
    words = sorted(words_of(CAPTIONS))
    assert words == ["a", "above", "blue", "café", "circle", "closed", "green", "it", "red", "small", "square", "star"]
    asked = ["a cat's red star", "café blue-green dog"]
    assert unknown_words(asked, words) == unknown_words(asked, CAPTIONS) == ["cat", "dog"]
