"""The oracle that is learned: right about real digits that it has not seen, and the same each time."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ldm.core import images, shards
from ldm.core.errors import ConfigError
from ldm.corpora import digits
from ldm.oracles import classifier, kinds
from ldm.oracles.oracle import NOT_STATED, RIGHT, WRONG, Oracle
from ldm.oracles.params import ClassifierOracleParams

PARAMS = ClassifierOracleParams(kind="classifier", num_images=1000, cost=10.0)
INK, DIGITS = load_digits(return_X_y=True)
NAMES = [digits.NAMES[digit] for digit in DIGITS]
PIXELS = np.stack([digits.render(ink.reshape(8, 8), 8) for ink in INK])


def write(folder: Path, claims: list[dict[str, str] | None]) -> tuple[Path, Path]:
    """Shards of the first digits with these claims."""
    keys = [f"{i:04d}" for i in range(len(claims))]
    pngs = ((key, {"png": images.encode_png(PIXELS[i])}) for i, key in enumerate(keys))
    shards.write(folder / "images", pngs, 500)
    texts = (json.dumps({"captions": [""], "claims": [claim]}).encode() for claim in claims)
    shards.write(folder / "captions", ((key, {"json": text}) for key, text in zip(keys, texts, strict=True)), 500)
    return folder / "images", folder / "captions"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("digits"), [{"class": name} for name in NAMES[:1000]])


@pytest.fixture(scope="module")
def oracle(folders: tuple[Path, Path]) -> Oracle:
    return kinds.build(PARAMS, *folders)


def right(oracle: Oracle, names: list[str], first: int = 1000) -> list[bool]:
    pairs = zip(PIXELS[first:], names, strict=True)
    return [oracle.codes(oracle.read(image), [{"class": name}]).tolist() == [[RIGHT]] for image, name in pairs]


def test_it_names_real_digits_that_it_has_not_seen_as_the_machine_of_scikit_learn_does(oracle: Oracle) -> None:
    """The same machine, fitted here without images, shards or claims."""
    expected = SVC(C=10.0).fit(np.repeat(PIXELS[:1000, ..., 0].reshape(1000, 64), 3, 1) / 255, NAMES[:1000])
    named = expected.predict(np.repeat(PIXELS[1000:, ..., 0].reshape(-1, 64), 3, 1) / 255)
    found = right(oracle, NAMES[1000:])
    assert found == (named == np.array(NAMES[1000:])).tolist()
    assert np.mean(found) > 0.95


def test_it_calls_another_class_wrong(oracle: Oracle) -> None:
    others = [digits.NAMES[(digit + 1) % 10] for digit in DIGITS[1000:]]
    assert np.mean(right(oracle, others)) < 0.02
    reading = oracle.read(PIXELS[0])
    assert oracle.codes(reading, [{"class": "one"}, None]).tolist() == [[WRONG], [NOT_STATED]]
    assert oracle.told({"class": "one"}, reading) == [("class", "one", NAMES[0])]


def test_it_learns_from_as_many_images_as_asked(folders: tuple[Path, Path]) -> None:
    few = kinds.build(PARAMS.model_copy(update={"num_images": 30}), *folders)
    assert 0.3 < np.mean(right(few, NAMES[1000:])) < 0.9


@pytest.mark.parametrize("claims", [[None] * 20, [{"class": "one"}] * 20])
def test_captions_without_classes_are_refused(tmp_path: Path, claims: list[dict[str, str] | None]) -> None:
    pictures, captions = (shards.Shards(folder) for folder in write(tmp_path, claims))
    with pytest.raises(ConfigError, match=r"evaluate.accuracy.kind: classifier: captions that claim [01] classes"):
        classifier.learn(PARAMS, pictures, captions)
