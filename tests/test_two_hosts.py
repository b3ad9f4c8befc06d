"""The job script for Slurm on two hosts: what they train together is what two processes of one host train."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import two_hosts
from tests.import_closure import ROOT
from tests.test_training_loop import SCRIPT, equal, largest_difference, launch

JOB = ROOT / "configs/slurm/two_nodes.sh"
SCENARIOS: dict[str, dict[str, Any]] = {"stopped": {"kill_at": 6}}
"""The process of the second host is told to stop; the job goes on from the state that the first one saved."""
MISSING = two_hosts.why_not()


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "out"
    launch(out, SCENARIOS)
    return out


@pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
@pytest.mark.parametrize(("config", "tolerance"), [("multinode", 0.0), ("multinode_fsdp", 1e-6)])
def test_two_hosts_train_what_two_processes_of_one_do(
    one_host: Path, tmp_path: Path, config: str, tolerance: float
) -> None:
    (tmp_path / "scenarios.json").write_text(json.dumps(SCENARIOS))
    (tmp_path / "bin").mkdir()
    environment = {"CONFIG": f"configs/accelerate/{config}.yaml"}
    with two_hosts.joined() as hosts:
        relative = str(SCRIPT.relative_to(ROOT))
        said = hosts.run_job(JOB, [relative, str(tmp_path)], tmp_path / "bin", environment)
        # Gradients of 20 steps came over the cable, and back.
        assert min(hosts.received()) > 50_000
    assert ("split over 2 processes" in said) == (config == "multinode_fsdp")
    ours, theirs = (load_file(folder / "stopped.safetensors") for folder in (tmp_path, one_host))
    assert equal(ours, theirs) if tolerance == 0 else largest_difference(ours, theirs) < tolerance
    ours, theirs = (json.loads((folder / "stopped.json").read_text()) for folder in (tmp_path, one_host))
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert a == pytest.approx(b, abs=tolerance, nan_ok=True)
