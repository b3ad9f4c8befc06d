from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.autoencoder.model.network import to_image, to_signal
from ldm.autoencoder.model.networks import build
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.compute.saved import State
from ldm.core import artifact, config
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.images import decode_png, encode_png
from ldm.core.shards import SPLITS, write
from ldm.corpora import shapes, shapes_scenes
from ldm.corpora.params import ShapesParams
from ldm.evaluation import measure, spaces
from ldm.evaluation.params import EvaluateParams, RetrievalParams
from ldm.evaluation.real_images import RealImages
from ldm.oracles import shapes as oracle
from ldm.oracles.oracle import NOT_STATED
from ldm.sampling.samples import Prompt
from ldm.text.model import clip
from ldm.text.model.params import ClipParams
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.trained_data import AUTOENCODER, CHANGES, CLIP, CORPUS

CPU = torch.device("cpu")
CORPUS_PARAMS = ShapesParams.model_validate(CORPUS)
PARAMS = config.read(EvaluateParams, "evaluate", ROOT / "params.yaml")
RETRIEVAL = {"kind": "retrieval", "num_prompts": 5, "k": 2, "num_images": 12}
COUNTS = {"train": 12, "val": 8, "reworded": 4, "unseen": 8, "held_out": 4}


def png(number: int, split: str) -> bytes:
    return encode_png(shapes_scenes.render(shapes_scenes.scene_at(number, split, CORPUS_PARAMS), 64))


class FakeSamples:
    """A set of samples in memory: the real images of its prompts."""

    def __init__(self, split: str, numbers: range, claims: bool) -> None:
        pairs = [shapes.pair_at(i, split, CORPUS_PARAMS, 64) for i in numbers]
        self.prompts = [
            Prompt(p.captions[0], p.claims[0] if claims else None, 0, split, p.key, i)
            for i, p in zip(numbers, pairs, strict=True)
        ]
        self.pngs = [png(i, split) for i in numbers]
        self.guidance_scale = 1.0

    def __len__(self) -> int:
        return len(self.prompts)

    def png(self, i: int) -> bytes:
        return self.pngs[i]


def sampled(claims: bool = True, seen_split: str = "val") -> dict[str, FakeSamples]:
    return {
        "held_out": FakeSamples("held_out", range(4), claims),
        "unseen": FakeSamples("unseen", range(5), claims),
        "reworded": FakeSamples("reworded", range(4), claims),
        "seen": FakeSamples(seen_split, range(5), claims),
        "sweep_1": FakeSamples("unseen", range(5, 8), claims),
    }


def params(**changes) -> EvaluateParams:
    return EvaluateParams.model_validate(PARAMS.model_dump() | CHANGES["evaluate"] | changes)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> RealImages:
    folder = tmp_path_factory.mktemp("images")
    for split, count in COUNTS.items():
        keys = [shapes.pair_at(i, split, CORPUS_PARAMS, 64).key for i in range(count)]
        write(folder / split, [(key, {"png": png(i, split)}) for i, key in enumerate(keys)], 5)
    return RealImages(folder, SPLITS)


@pytest.fixture(scope="module")
def instruments() -> measure.Instruments:
    torch.manual_seed(0)
    model = clip.build(ClipParams.model_validate(CLIP), 0).eval()
    autoencoder = build(KLAutoencoderParams.model_validate(AUTOENCODER)).eval()
    return measure.Instruments([spaces.own_clip(model, "0" * 64)], oracle.ORACLE, model, autoencoder, CPU, {})


@pytest.mark.parametrize("kinds", [[], ["shapes"], ["inception", "shapes", "clip"]])
def test_the_hashes_name_weights_that_were_brought_for_feature_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instruments: measure.Instruments, kinds: list[str]
) -> None:
    hashes = {"inception": "1" * 64, "shapes": "2" * 64, "clip": "3" * 64}
    monkeypatch.setattr(
        spaces, "build", lambda space, _: spaces.FeatureSpace(space.kind, hashes[space.kind], to_signal)
    )
    brought: dict[str, dict[str, Any]] = {
        "inception": {"weights": "a"},
        "clip": {"architecture": "b", "weights": "c", "quick_gelu": True},
    }
    asked = params(
        accuracy={"kind": "none"}, feature_spaces=[{"kind": kind, **brought.get(kind, {})} for kind in kinds]
    )
    folders = {"clip": tmp_path / "clip", "autoencoder": tmp_path / "autoencoder"}
    assert instruments.clip is not None
    instruments.clip.save(folders["clip"], {}, {})
    tensors = instruments.autoencoder.state_dict()
    artifact.write(folders["autoencoder"], KINDS["autoencoder"], AUTOENCODER, tensors, {}, {})
    found = measure.Instruments.load(asked, tmp_path / "clip", tmp_path / "autoencoder", (tmp_path, tmp_path), CPU)
    of_networks = {name: artifact.read_passport(path, KINDS[name]).content_sha256 for name, path in folders.items()}
    assert found.sha256 == of_networks | {f"space_{kind}": hashes[kind] for kind in kinds if kind != "shapes"}
    assert [space.name for space in found.spaces] == [spaces.OWN_CLIP, *kinds]


def by_name(found: list[measure.Subject]) -> dict[str, measure.Subject]:
    return {subject.name: subject for subject in found}


def test_every_set_has_its_real_images_and_their_round_trips(real):
    found = by_name(measure.subjects(sampled(), real, params()))
    sets = ("held_out", "unseen", "reworded", "seen")
    expected = [*sets, "sweep_1", *(prefix + name for name in sets for prefix in ("real_", "decoded_"))]
    assert list(found) == [*expected, "real_sweep", "reference"]
    assert [subject.name for subject in found.values() if subject.decoded] == [f"decoded_{name}" for name in sets]
    for sampled_set, real_images in (*((name, f"real_{name}") for name in sets), ("sweep_1", "real_sweep")):
        pngs = [[found[name].png(i) for i in range(3)] for name in (sampled_set, real_images)]
        assert pngs[0] == pngs[1], sampled_set


def test_the_reference_holds_no_image_of_a_prompt(real):
    found = by_name(measure.subjects(sampled(seen_split="train"), real, params()))
    seen, reference = ({s.png(i) for i in range(s.count)} for s in (found["real_seen"], found["reference"]))
    assert len(seen) == 5 and found["reference"].count == 12 - 5
    assert not seen & reference


def test_too_few_training_images_for_a_reference_are_refused(real):
    everything = sampled() | {"seen": FakeSamples("train", range(11), True)}
    with pytest.raises(ConfigError, match="1 of 12 training images"):
        measure.subjects(everything, real, params())


def test_for_retrieval_a_gallery_opens_with_the_images_of_the_prompts(real):
    samples = sampled(claims=False, seen_split="train")
    found = by_name(measure.subjects(samples, real, params(accuracy=RETRIEVAL | {"num_prompts": 4})))
    gallery = [found["gallery"].png(i) for i in range(found["gallery"].count)]
    assert len(gallery) == len(set(gallery)) == 12
    assert gallery[:4] == [samples["seen"].png(i) for i in range(4)]


def test_every_image_with_the_caption_of_a_prompt_matches_it(real):
    samples = sampled(claims=False, seen_split="train")
    texts = {
        split: [["thing"] if i % 2 else [f"{split} {i}"] for i in range(COUNTS[split])] for split in ("train", "val")
    }
    samples["seen"].prompts[1] = replace(samples["seen"].prompts[1], prompt="thing")
    samples["seen"].prompts[0] = replace(samples["seen"].prompts[0], prompt="train 0")
    retrieval = RETRIEVAL | {"num_prompts": 2}
    found = measure.matching(samples, real, texts, RetrievalParams.model_validate(retrieval))
    assert found.shape == (2, 12) and found[0].tolist() == [True] + [False] * 11
    subject = by_name(measure.subjects(samples, real, params(accuracy=retrieval)))["gallery"]
    odd = {real.png((split, i)) for split in ("train", "val") for i in range(1, COUNTS[split], 2)}
    assert found[1].tolist() == [subject.png(i) in odd for i in range(12)]


@pytest.mark.parametrize("change", [{"key": "nothing"}, {"sample": 3}, {"sample": 99}, {"sample": None}])
def test_a_prompt_whose_image_is_not_where_it_was_is_refused(real, change):
    prompt = FakeSamples("val", range(3), True).prompts[1]
    assert real.png(real.origin(prompt)) == png(1, "val")
    key = change.get("key", prompt.key)
    with pytest.raises(IntegrityError, match=rf"no sample {key} at (1|3|99|None)\b.*\n.*dvc repro sample"):
        real.origin(replace(prompt, **change))


def test_the_oracle_confirms_real_images_and_refuses_other_claims(real, instruments):
    subject = by_name(measure.subjects(sampled(), real, params()))["real_seen"]
    found, _ = instruments.measure(subject, range(5), batch_size=2)
    for name in ("scene", "scene_strict"):
        scene = oracle.ORACLE.attributes.index(name)
        assert found["checks"][:, scene].tolist() == [1] * 5
        assert found["shuffled_checks"][:, scene].tolist() == [0] * 5
    stated = [[name in stated_by(prompt.claim) for name in oracle.ATTRIBUTES] for prompt in subject.prompts]
    assert (found["checks"][:, : len(oracle.ATTRIBUTES)] != NOT_STATED).tolist() == stated


def stated_by(claim: dict) -> set[str]:
    return {"count", *(key for o in claim["objects"] for key in o), *(claim.keys() - {"objects"})}


def test_round_trips_pass_through_the_autoencoder(real, instruments):
    subject = by_name(measure.subjects(sampled(), real, params()))["decoded_seen"]
    found, _ = instruments.measure(subject, range(2), batch_size=2)
    pixels = torch.from_numpy(np.stack([decode_png(subject.png(i)) for i in range(2)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        posterior = instruments.autoencoder.encode(to_signal(pixels))
        expected = instruments.clip.image_features(to_image(instruments.autoencoder.decode(posterior.mean)))
    assert torch.allclose(found["features_own_clip"], expected, atol=1e-6)
    assert not torch.allclose(found["features_own_clip"], instruments.clip.image_features(pixels), atol=1e-3)


def test_measurements_do_not_depend_on_units_and_come_back_in_order(real, instruments):
    found = [s for s in measure.subjects(sampled(), real, params()) if s.name in ("seen", "reference")]
    whole = {s.name: instruments.measure(s, range(s.count), batch_size=16) for s in found}
    work = measure.units(found, 2)
    kept = {
        key: State(0, *instruments.measure(subject, rows, batch_size=16))
        for key, (subject, rows) in reversed(work.items())
    }
    again, told = measure.gather(work, kept.__getitem__)
    assert again.keys() == whole.keys()
    assert told == {"seen": whole["seen"][1]["told"]} and len(told["seen"]) == 5
    for name, (tensors, _) in whole.items():
        assert again[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.allclose(again[name][key].float(), tensor.float(), atol=1e-6), (name, key)


def test_text_features_are_those_of_the_prompts(real, instruments):
    subject = by_name(measure.subjects(sampled(), real, params()))["held_out"]
    found, _ = instruments.measure(subject, range(4), batch_size=3)
    ids = instruments.clip.tokenise([prompt.prompt for prompt in subject.prompts])
    assert torch.allclose(found["clip_text"], instruments.clip.text_features(ids), atol=1e-6)


def test_nothing_is_checked_of_a_prompt_without_a_claim(real, instruments):
    subject = by_name(measure.subjects(sampled(claims=False), real, params()))["seen"]
    tensors, values = instruments.measure(subject, range(5), 5)
    assert bool((tensors["checks"] == NOT_STATED).all())
    assert values == {"told": [[]] * 5}


def test_without_an_oracle_nothing_is_checked(real, instruments):
    subject = by_name(measure.subjects(sampled(), real, params()))["seen"]
    found = replace(instruments, oracle=None).measure(subject, range(5), 5)
    assert set(found[0]) == {"features_own_clip", "clip_text"} and found[1] == {}


def test_the_picture_shows_every_sample_beside_its_real_image(real):
    samples = sampled()
    samples["seen"].pngs = [encode_png(np.full((64, 64, 3), 50 + i, np.uint8)) for i in range(5)]
    picture = np.asarray(measure.beside_real(samples, real, 2))
    first = decode_png(real.png(("val", samples["seen"].prompts[0].sample)))
    assert (picture[4 : 4 + 128, 4 : 4 + 128] == 50).all()
    assert (picture[4 : 4 + 128, 136 : 136 + 128] == first.repeat(2, 0).repeat(2, 1)).all()
