"""A UNet as another average of its training: the optional stage, the command, and guidance by an earlier one."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser.model.diffusion import Schedule
from ldm.denoiser.model.networks import load
from ldm.sampling.guidance.models import load_worse, traits_of
from ldm.tools import averaging, cli
from ldm.tools.averaging import KeptAverages
from ldm.tools.cli import average
from ldm.tools.cli.options import Command
from ldm.training.averages import mixed
from optional import average_unet
from tests.import_closure import OPTIONAL, QUICK, ROOT, covered, files_of, stage_scripts
from tests.kinds import KINDS
from tests.stage_scripts import run
from tests.test_stages_training import write_params
from tests.training_data import PLAIN, UNET, write_all

UNETS = Path("data/unet"), Path("data/unet_results")
LENGTHS = [0.04, 0.1, 0.2]
KEPT = {"lengths": [0.05, 0.1], "every_steps": 2, "result": None}
TRAINING = UNET["training"] | {"num_steps": 20, "validate_every_steps": 20}
CPU = torch.device("cpu")


def _params(**averages: Any) -> dict[str, Any]:
    return UNET | {"training": TRAINING, "averages": KEPT | averages}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained UNet whose training kept averages, and its finished state."""
    folder = tmp_path_factory.mktemp("averaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        write_all(folder / "data")
        machine = {"threads": 1, "num_workers": 0, "attention": "math", "compile": False}
        machine |= {"keep_finished_states": True, "num_kept_runs": 3, "max_run_age_days": 30, "trackers": []} | PLAIN
        write_params(folder, train_unet=_params(), machine=machine)
        run("train_unet")
    return folder


@pytest.fixture
def trained(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the working folder."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("sys.argv", ["average_unet"])
    (root / "optional").mkdir(exist_ok=True)
    (root / "optional/params.yaml").write_text(json.dumps({"average_unet": {"lengths": LENGTHS, "metric": "mse"}}))
    return root


def _weights(folder: str) -> dict[str, Tensor]:
    return artifact.read(Path(folder), KINDS["unet"])[1]


def test_the_stage_writes_the_length_that_validates_best(trained: Path) -> None:
    line = average_unet.main()
    rows = list(csv.DictReader((trained / "other/unet_averaged/lengths.csv").open()))
    assert [float(row["length"]) for row in rows] == LENGTHS and len({row["mse"] for row in rows}) == 3
    best = min(rows, key=lambda row: float(row["mse"]))
    assert line.startswith(f"average_unet: length {best['length']}")
    passport = artifact.read_passport(Path("other/unet_averaged"), KINDS["unet"])
    assert passport.facts["average"] == {"step": 20, "length": float(best["length"])}
    averages = json.loads(Path("data/unet_results/averages/passport.json").read_text())
    assert passport.inputs["averages"] == averages["content_sha256"]
    kept = KeptAverages.load(*UNETS)
    found = mixed(kept.found, 20, float(best["length"]))
    assert all(torch.equal(_weights("other/unet_averaged")[name], value) for name, value in found.items())
    assert found.keys() == _weights("data/unet").keys(), "every weight of this network is trained"
    # The trained one is measured as its training has measured it.
    measured = json.loads((trained / "other/unet_averaged/metrics.json").read_text())["trained"]["mse"]
    assert measured == pytest.approx(json.loads(Path("data/unet_results/metrics.json").read_text())["validation_mse"])


def test_an_earlier_average_guides_the_trained_unet(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["average", "0.1", "--step", "4", "--output", "early"]) == 0
    assert capsys.readouterr().out == "average of length 0.1 at step 4 (misfit 0.000) -> early\n"
    network, diffusion, passport = load(Path("data/unet"), CPU)
    traits = traits_of(Schedule(diffusion.schedule), network.latent_shape, passport)
    worse = load_worse(Path("early"), traits, Path("data/unet"), CPU)
    kept = dict(KeptAverages.load(*UNETS).found)
    for name, value in worse.network.named_parameters():
        assert torch.allclose(value, kept[4, 0.1][name].float(), atol=1e-6), name


def test_what_cannot_be_is_refused_in_a_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    average.add((commands := Command()).add_subparsers(parser_class=Command))
    with pytest.raises(SystemExit) as caught:
        commands.parse_args(["average", "0.1", "--step", "0", "--output", "new"])
    assert caught.value.code == 2 and "a whole number from 1" in capsys.readouterr().err
    for arguments, words in (
        (["0.1", "--step", "21"], "step: 21; expected one from 1 to 20"),
        (["0.01"], "length 0.01 at step 20: misfit 0."),
        *(([given], f"length: {given}; expected one from 0.005 to 0.28") for given in ("-0.1", "0", "nan", "0.3")),
        (["0.1", "--output", "data/unet"], "data/unet exists"),
    ):
        given = ["average", *arguments, *([] if "--output" in arguments else ["--output", "new"])]
        assert cli.main(given) == 2
        assert words in capsys.readouterr().err and not Path("new").exists()


def test_a_unet_without_averages_or_with_those_of_another_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="the training kept none"):
        KeptAverages.load(UNETS[0], tmp_path)
    other, passport = tmp_path / "other", artifact.read_passport(UNETS[0], KINDS["unet"])
    inputs = passport.inputs | {"embeddings": "0"}
    artifact.write(other, KINDS["unet"], passport.config, _weights("data/unet"), inputs, passport.facts)
    with pytest.raises(IntegrityError, match="averages of another training"):
        averaging.write(other, UNETS[1], tmp_path / "new", None, 0.1)


def test_another_result_takes_no_step(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The finished state is there, and no step depends on which average becomes the result."""
    expected = KeptAverages.load(*UNETS).weights(20, 0.15)
    write_params(
        trained, train_unet=_params(result=0.15), machine=json.loads(Path("params.yaml").read_text())["machine"]
    )
    run("train_unet")
    assert "going on from step 20" in capsys.readouterr().out
    assert all(torch.equal(value, expected[name]) for name, value in _weights("data/unet").items())


def test_the_pipeline_lists_the_code_of_its_scripts() -> None:
    stages = YAML(typ="safe", pure=True).load((ROOT / OPTIONAL).read_text())["stages"]
    for name, script in stage_scripts(ROOT, OPTIONAL).items():
        listed = [dep for dep in stages[name]["deps"] if not dep.startswith("${")]
        assert listed == covered(files_of(script, ROOT), is_quick=name in QUICK), "run `make deps`"
        assert stages[name]["cmd"] == f"python -m optional.{name}"
