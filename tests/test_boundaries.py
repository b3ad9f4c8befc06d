"""Which stages an edit of the code may rerun. dvc.yaml lists what a stage runs (`tests/test_rules.py`); here it is said
what no stage may come to run: a new import that crosses one of these boundaries would retrain for nothing."""

import re
from collections.abc import Set

import pytest

from ldm.compute.closure import files_of
from tests.import_closure import ROOT, stage_scripts

STAGES = {stage: files_of(script, ROOT) for stage, script in stage_scripts().items()}
TRAININGS = {"train_autoencoder", "train_clip", "train_unet"}
COMPUTING = STAGES.keys() - {"check"}


def running(*places: str) -> set[str]:
    """The stages that run a file of these folders, or one of these files; `check` validates the params of all."""
    inside = re.compile("|".join(rf"{re.escape(place)}(/|$)" for place in places))
    files = {file for found in STAGES.values() for file in found}
    unknown = [place for place in places if not (ROOT / place).exists()]
    assert not unknown and any(inside.match(file) for file in files), f"{places}: {unknown} are not there"
    return {stage for stage, found in STAGES.items() if any(inside.match(file) for file in found)} - {"check"}


@pytest.mark.parametrize(
    ("places", "stages"),
    [
        (["ldm/denoiser"], {"train_unet", "sample", "model"}),
        (["ldm/denoiser/training"], {"train_unet"}),
        (["ldm/compute"], COMPUTING),
        (["ldm/compute/attention.py", "ldm/compute/devices.py", "ldm/compute/cores.py"], COMPUTING - {"prepare"}),
        (["ldm/sampling/trajectory.py", "ldm/sampling/generator.py"], {"sample"}),
        (["ldm/sampling"], {"sample", "evaluate", "model"}),
        (["ldm/training/loop.py", "ldm/training/params.py"], TRAININGS),
        (["ldm/autoencoder/training"], {"train_autoencoder"}),
        (["ldm/autoencoder/encoding"], {"encode_latents", "train_unet", "sample"}),
        (["ldm/text"], {"train_clip", "embed_text", "train_unet", "sample", "evaluate", "model"}),
        (["ldm/text/training"], {"train_clip"}),
        (["ldm/evaluation"], {"evaluate", "model"}),
        (["ldm/evaluation/measure.py", "ldm/evaluation/spaces.py", "ldm/oracles"], {"evaluate"}),
        (["ldm/tools/card"], {"model"}),
        (["ldm/corpora/preparation.py", "ldm/corpora/pixels.py"], {"prepare"}),
        (["ldm/corpora"], {"prepare", "evaluate", "sample", "model"}),
        (["ldm/corpora/spelling.py"], {"prepare", "sample"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_code_is_run_by_no_other_stage(places: list[str], stages: Set[str]) -> None:
    assert running(*places) <= stages


def test_check_and_prepare_compute_nothing() -> None:
    # All but what the environment and the config of a launcher may say, for which torch is not needed.
    computing = {file for file in STAGES["check"] if file.startswith("ldm/compute/")}
    assert computing == {"ldm/compute/launcher.py"}
    rooms = "ldm/(autoencoder|text|denoiser|sampling|training|evaluation|oracles|precompute/cache)"
    assert not any(re.match(rooms, file) for file in STAGES["prepare"])


def test_no_stage_runs_the_bench() -> None:
    assert not any(file.startswith("ldm/analytic/") for found in STAGES.values() for file in found)


def test_evaluate_runs_of_sampling_only_what_reads_samples() -> None:
    found = {file for file in STAGES["evaluate"] if file.startswith("ldm/sampling/")}
    assert found == {"ldm/sampling/samples.py"}
