"""The model card: what it must say, for every corpus, and that the hub can read it."""

import dataclasses
import re
from typing import Any, get_args

import pytest
from huggingface_hub import ModelCard
from pydantic import ValidationError
from ruamel.yaml import YAML

from ldm.core import artifact, config
from ldm.core.artifact import Passport
from ldm.corpora.params import CorpusParams, PrepareParams, TorchvisionParams
from ldm.evaluation.params import EvaluateParams, FeatureSpaceParams
from ldm.sampling.params import SampleParams
from ldm.tools.card import brought, card, sources
from ldm.tools.model.params import CardParams, MemorisationParams, ModelParams
from tests.import_closure import ROOT
from tests.test_card_memorisation import PARAMS as COMPARED
from tests.trained_data import PREPARE

PARAMS = CardParams.model_validate(
    {
        "title": "Shapes: a test",
        "licence": None,
        "data": None,
        "prompt": 'a "red" star',
        "pictures": True,
        "limits": ["No faces."],
    }
)
NUMBERS = {
    "memorised_share": 0.0125,
    "memorised_share_low": 0.01,
    "memorised_share_high": 0.02,
    "closer_than_real": 0.4875,
    "closeness_threshold": 0.5,
    "closeness_samples": 0.81,
    "closeness_real": 0.79,
    "num_samples": 80,
    "num_real": 60,
    "num_training": 300,
}
METRICS = {
    "scene_accuracy_seen": 0.9,
    "scene_accuracy_seen_low": 0.8,
    "scene_accuracy_seen_2_objects": 0.7,
    "frechet_shapes_seen": 0.25,
    "frechet_shapes_seen_floor": 0.1,
    "shapes_extractor_sha256": "f" * 64,
    "num_samples_seen": 80,
}
TABLE = "|  | seen |\n| --- | --- |\n| whole scene | 90.0 % |\n"


def passport(kind: str, number: int, facts: dict[str, Any], **inputs: str) -> Passport:
    values = {
        "kind": kind,
        "format_version": 1,
        "config": {"accuracy": {"kind": "shapes"}, "diffusion": {"schedule": "cosine"}},
        "inputs": inputs,
        "content_sha256": str(number) * 64,
        "facts": facts,
        "packages": {"torch": "2.10.0"},
    }
    return Passport.model_validate(artifact.sealed(values))


FACTS = card.Facts(
    parts={
        "unet": passport("unet", 1, {"caption_dropout": 0.1}, autoencoder="2" * 64, latents_train="5" * 64),
        "autoencoder": passport("autoencoder", 2, {}, images_train="6" * 64),
        "clip": passport("clip", 3, {"source": {"kind": "train"}}),
        "embeddings": passport("embeddings", 4, {"context_tokens": 24}),
    },
    prepare=PrepareParams.model_validate(PREPARE),
    counts={"train": 300, "val": 60, "reworded": 0, "unseen": 0, "held_out": 20},
    drawing=config.read(SampleParams, "sample", ROOT / "params.yaml").drawing,
    evaluation=passport("evaluation", 7, {}),
    metrics=METRICS,
    table=TABLE,
    memorisation=NUMBERS,
    compared=MemorisationParams.model_validate(COMPARED),
)

NUM_STEPS, SCALE = FACTS.drawing.num_steps, f"guidance_scale={FACTS.drawing.guidance_scale:g})"


def kinds(union: Any) -> set[str]:
    """The kinds of a union of params classes."""
    return {get_args(model.model_fields["kind"].annotation)[0] for model in get_args(union)}


def test_the_hub_reads_its_metadata() -> None:
    data = ModelCard(card.write(FACTS, PARAMS)).data
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "text-to-image")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"scene_accuracy_seen": 0.9, "frechet_shapes_seen": 0.25}
    assert ModelCard(card.write(FACTS, PARAMS.model_copy(update={"licence": "mit"}))).data.license == "mit"


def test_any_title_is_yaml() -> None:
    text = card.write(FACTS, PARAMS.model_copy(update={"title": "Shapes \N{HEAVY BLACK HEART}\N{ARTIST PALETTE}: é"}))
    head = YAML(typ="safe").load(text.split("---\n")[1])
    assert head["model-index"][0]["name"] == "Shapes \N{HEAVY BLACK HEART}\N{ARTIST PALETTE}: é"


def test_it_says_what_a_reader_needs() -> None:
    text = card.write(FACTS, PARAMS)
    assert text.count("\n# ") == 1 and "# Shapes: a test" in text
    assert "300 `train`, 60 `val`, 20 `held_out`" in text and "unseen`," not in text and "reworded`," not in text
    assert TABLE.strip() in text
    assert "**1.2 %** of 80 samples (1.0 to 2.0)" in text and "than 95 % of 60 real images" in text
    assert "49 of 100 pairs" in text and "more than 20 % the model would not" in text
    numbers = {**FACTS.memorisation, "memorised_share": 0.25, "memorised_share_high": 0.36}
    assert "Up to 20 % are allowed; as many as here" in card.write(
        dataclasses.replace(FACTS, memorisation=numbers), PARAMS
    )
    assert "- No faces." in text and "It reads 24 tokens" in text
    for digit in "123456":
        assert f"`{digit * 64}`" in text
    assert {match for match in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)} == {card.GRID, card.NEIGHBOURS}


def test_it_shows_three_tools() -> None:
    text = card.write(FACTS, PARAMS)
    assert "ldm generate 'a \"red\" star' --model FOLDER" in text
    assert "ldm export pipeline --format diffusers" in text and f"num_inference_steps={NUM_STEPS}, {SCALE}" in text
    assert "ldm export model.safetensors --format single-file" in text
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")


def with_parts(**changes: Passport) -> card.Facts:
    return dataclasses.replace(FACTS, parts={**FACTS.parts, **changes})


def test_it_calls_diffusers_as_an_export_does() -> None:
    unet = FACTS.parts["unet"].model_copy(update={"config": {"diffusion": {"schedule": "flow"}}})
    settings = f"sigmas=[1 - i / {NUM_STEPS} for i in range({NUM_STEPS})], {SCALE}"
    assert settings in card.write(with_parts(unet=unet), PARAMS)


BROUGHT = {
    "unet": passport("unet", 1, {}, init_from="8" * 64),
    "autoencoder": passport("autoencoder", 2, {"source": {"vae.safetensors": "9" * 64}}, source="a" * 64),
    "clip": passport("clip", 3, {"source": {"kind": "open_clip", "architecture": "ViT-L-14", "tag": "openai"}}),
}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("unet", f"its UNet (trained further from weights with SHA-256 `{'8' * 64}`)"),
        ("autoencoder", "its autoencoder (from `vae.safetensors`)"),
        ("clip", "its text encoder (`ViT-L-14, openai`)"),
    ],
)
def test_weights_of_others_are_named_and_nothing_is_claimed_for_them(part: str, said: str) -> None:
    text = card.write(with_parts(**{part: BROUGHT[part]}), PARAMS)
    assert ModelCard(text).data.license is None
    assert said in text and "nor under which licence" in text and "and no others" not in text
    stated = card.write(with_parts(**{part: BROUGHT[part]}), PARAMS.model_copy(update={"licence": "openrail"}))
    assert ModelCard(stated).data.license == "openrail" and "nor under which licence" not in stated
    assert "Others' weights" not in card.write(FACTS, PARAMS) and "and no others" in card.write(FACTS, PARAMS)


def test_files_of_others_are_listed_with_their_hashes() -> None:
    facts = {"source": {"kind": "transformers", "path": "data/models/clip/t5"}}
    encoder = passport("text_encoder", 3, facts | {"source_sha256": {"model.safetensors": "b" * 64}})
    text = card.write(with_parts(clip=encoder, autoencoder=BROUGHT["autoencoder"]), PARAMS)
    assert f"| text encoder: model.safetensors | `{'b' * 64}` |" in text
    assert f"| autoencoder: vae.safetensors | `{'9' * 64}` |" in text
    assert "told by a text encoder that was brought (`data/models/clip/t5`)" in text


def test_a_clip_that_nothing_trained_was_not_brought() -> None:
    untrained = passport("clip", 3, {"source": {"kind": "untrained", "seed": 0}})
    text = card.write(with_parts(clip=untrained), PARAMS)
    assert "told by a CLIP with random weights" in text and "Others' weights" not in text


def test_pictures_can_be_left_out() -> None:
    text = card.write(FACTS, PARAMS.model_copy(update={"pictures": False}))
    assert "![" not in text and ".png" not in text


def test_captions_that_are_kept_back_are_not_in_pictures_either() -> None:
    model = config.read(ModelParams, "model", ROOT / "params.yaml").model_dump()
    shown, hidden = (PARAMS.model_copy(update={"pictures": pictures}).model_dump() for pictures in (True, False))
    with pytest.raises(ValidationError, match=r"set card\.pictures: false"):
        ModelParams.model_validate(model | {"with_words": False, "card": shown})
    for values in ({"with_words": False, "card": hidden}, {"with_words": True, "card": shown}):
        ModelParams.model_validate(model | values)


@pytest.mark.parametrize("corpus", get_args(CorpusParams), ids=lambda model: model.__name__)
def test_every_corpus_has_a_text_and_a_licence_or_none(corpus: Any) -> None:
    found = sources.of(corpus.model_construct(dataset="CIFAR10", openmoji_version="17.0.0"))
    assert found.licence is not None or "**not stated**" in found.text


def test_the_owner_may_say_where_images_come_from() -> None:
    text = card.write(FACTS, PARAMS.model_copy(update={"data": "Photographs of my own, CC BY 4.0."}))
    assert "Photographs of my own, CC BY 4.0." in text and "drawn at random" not in text


def test_a_known_dataset_of_torchvision_has_its_licence() -> None:
    found = sources.of(TorchvisionParams.model_construct(dataset="FashionMNIST"))
    assert found.licence == "mit" and "Zalando" in found.text


def test_every_space_and_every_accuracy_is_explained() -> None:
    for kind in kinds(EvaluateParams.model_fields["accuracy"].annotation):
        evaluation = FACTS.evaluation.model_copy(update={"config": {"accuracy": {"kind": kind}}})
        text = card.write(dataclasses.replace(FACTS, evaluation=evaluation), PARAMS)
        assert "When is a sample right?" in text and f"`{kind}` says so" not in text
    for space in kinds(get_args(FeatureSpaceParams)[0]) | {"own_clip"}:
        text = card.write(dataclasses.replace(FACTS, metrics=METRICS | {f"{space}_extractor_sha256": "f" * 64}), PARAMS)
        assert f"- *{space.replace('_', ' ')}*: " in text and "a network of that name" not in text


def test_a_new_oracle_and_a_new_space_do_not_stop_a_card() -> None:
    evaluation = FACTS.evaluation.model_copy(update={"config": {"accuracy": {"kind": "stars"}}})
    facts = dataclasses.replace(FACTS, evaluation=evaluation, metrics={"stars_extractor_sha256": "f" * 64})
    text = card.write(facts, PARAMS)
    assert "`stars` says so" in text and "- *stars*: a network of that name" in text


def test_a_model_of_its_own_has_nothing_that_was_brought() -> None:
    assert brought.weights(FACTS.parts) == {} and brought.files(FACTS.parts) == []
    tuned = passport("unet", 1, {}, init_from="7" * 64)
    assert brought.weights(FACTS.parts | {"unet": tuned}) == {
        "UNet": f"trained further from weights with SHA-256 `{'7' * 64}`"
    }
