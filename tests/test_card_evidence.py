"""The card as stage `model` writes it, and a model that copies, of which nothing but the proof is written."""

import json
import shutil
from pathlib import Path

import pytest

from ldm.core import artifact, config
from ldm.core.errors import IntegrityError, RejectedError
from ldm.core.shards import SPLITS, Shards
from ldm.evaluation.real_images import RealImages
from ldm.sampling import samples
from ldm.tools.card import card, memorisation
from ldm.tools.card.evidence import CARD, Evidence
from ldm.tools.model import folder
from ldm.tools.model.params import ModelParams
from tests.stage_scripts import run
from tests.trained_data import change


@pytest.fixture(scope="module")
def made(root: Path) -> Path:
    """The repository after stage `model`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for stage in ("sample", "evaluate", "model"):
            run(stage)
    return root / "data"


@pytest.fixture
def evidence(made: Path) -> Evidence:
    return Evidence(made / "images", made / "samples", made / "evaluation")


def test_the_folder_has_a_card_with_the_numbers_of_its_own_run(made: Path) -> None:
    text = (made / "model" / CARD).read_text()
    assert (made / "evaluation/table.md").read_text().strip() in text
    assert "30 `train`, 20 `val`, 7 `reworded`, 12 `unseen`, 8 `held_out`" in text
    for passport in folder.passports(made / "model").values():
        assert f"`{passport.content_sha256}`" in text
    assert (made / "model" / card.GRID).read_bytes() == (made / "samples/grid.png").read_bytes()
    assert (made / "model" / card.NEIGHBOURS).read_bytes() == (made / "model_results" / card.NEIGHBOURS).read_bytes()


def test_numbers_are_metrics_that_a_measurement_makes_again(made: Path) -> None:
    numbers = json.loads((made / "model_results/metrics.json").read_bytes())
    params = config.read(ModelParams, "model", made.parent / "params.yaml").memorisation
    sets = samples.read(made / "samples")[1]
    found = memorisation.measure(sets, RealImages(made / "images", SPLITS), params)
    assert found.numbers() == numbers
    assert (numbers["num_samples"], numbers["num_real"], numbers["num_training"]) == (23, 35, 30)


def test_a_model_that_copies_is_not_written_but_its_proof_is(made: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    for path in made.iterdir():
        if path.name not in ("model", "model_results"):
            (tmp_path / "data" / path.name).symlink_to(path)
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(made.parent / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    train = Shards(made / "images/train")
    monkeypatch.setattr(samples.Samples, "png", lambda _, i: train.image(i))
    with pytest.raises(RejectedError, match="samples are closer to a training image") as error:
        run("model")
    assert error.value.exit_code == 3
    assert not (tmp_path / "data/model").exists()
    assert sorted(path.name for path in (tmp_path / "data/model_results").iterdir()) == [
        "metrics.json",
        "neighbours.png",
    ]
    assert json.loads(Path("data/model_results/metrics.json").read_bytes())["memorised_share"] == 1
    change(tmp_path, "model", memorisation=_memorisation(max_share=1.0), card=_card(pictures=False))
    run("model")
    assert (tmp_path / "data/model" / CARD).is_file() and not list((tmp_path / "data/model").glob("*.png"))


def test_samples_of_another_model_are_not_taken_for_copies(made: Path, monkeypatch) -> None:
    monkeypatch.chdir(made.parent)
    of_samples = samples.read(made / "samples")[0]
    other = of_samples.model_copy(update={"inputs": of_samples.inputs | {"unet": "0" * 64}})
    monkeypatch.setattr(samples, "read", lambda _: (other, {}))
    with pytest.raises(IntegrityError, match="samples made with unet"):
        run("model")


def _memorisation(**changes: object) -> dict[str, object]:
    return config.read(ModelParams, "model").memorisation.model_dump() | changes


def _card(**changes: object) -> dict[str, object]:
    return config.read(ModelParams, "model").card.model_dump() | changes


def test_samples_of_another_model_are_refused(made: Path, evidence: Evidence, tmp_path: Path) -> None:
    params = config.read(ModelParams, "model", made.parent / "params.yaml")
    found = evidence.compare(tmp_path / "results", params.memorisation)
    parts = folder.passports(made / "model")
    other = parts["unet"].model_copy(update={"content_sha256": "0" * 64})
    sections = config.Document(made.parent / "params.yaml")
    from ldm.corpora.params import PrepareParams
    from ldm.sampling.params import SampleParams

    prepare, drawing = sections.read(PrepareParams, "prepare"), sections.read(SampleParams, "sample").drawing
    with pytest.raises(IntegrityError, match="samples made with unet"):
        evidence.write_card(
            tmp_path, tmp_path / "results", parts | {"unet": other}, prepare, drawing, found, params.card
        )
    assert artifact.PASSPORT not in {path.name for path in tmp_path.iterdir()}
