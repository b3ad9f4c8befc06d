"""What accelerate's own config may say, and a start of a stage without accelerate's notices."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, default_config_file, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from ldm.core.errors import MachineError
from ldm.tools import launch
from ldm.tools.check import launch_config
from tests.import_closure import ROOT
from tests.stage_scripts import script
from tests.training_data import KEPT

# As `accelerate config` writes it, with the answer bf16.
ANSWERS: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "debug": False,
    "distributed_type": "NO",
    "downcast_bf16": "no",
    "enable_cpu_affinity": False,
    "gpu_ids": "all",
    "machine_rank": 0,
    "main_training_function": "main",
    "mixed_precision": "bf16",
    "num_machines": 1,
    "num_processes": 1,
    "rdzv_backend": "static",
    "same_network": True,
    "tpu_env": [],
    "tpu_use_cluster": False,
    "tpu_use_sudo": False,
    "use_cpu": False,
}
TWO_GPUS = {"distributed_type": "MULTI_GPU", "num_processes": 2}
TWO_SPLIT = {"distributed_type": "FSDP", "num_processes": 2}


def offering(**settings: Any) -> dict[str, Any]:
    return {"fsdp_config": {"fsdp_version": 2, **settings}}


SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from ldm.compute import cores
from ldm.core.params import MachineParams
machine = MachineParams(threads=None, num_workers=0, attention="math", compile=False, **{KEPT!r})
print(cores.threads(machine), sys.argv[1:])
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where accelerate's config would be."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "accelerate").mkdir()
    return tmp_path / "accelerate/default_config.yaml"


def test_the_config_is_where_accelerate_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not {"HF_HOME", "XDG_CACHE_HOME"} & os.environ.keys():
        assert launch_config.config_path() == Path(default_config_file)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "huggingface/accelerate"
    assert launch_config.config_path() == folder / "default_config.yaml"
    folder.mkdir(parents=True)
    (folder / "default_config.json").touch()
    assert launch_config.config_path() == folder / "default_config.json"
    (folder / "default_config.yaml").touch()
    assert launch_config.config_path() == folder / "default_config.yaml"


def test_known_keys_are_those_of_the_installed_accelerate() -> None:
    assert launch_config._known_keys() - launch_config._OLD_KEYS == set(ClusterConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixed_precision": "no"},
        {"use_cpu": True, "dynamo_config": {"dynamo_backend": "INDUCTOR"}},
        {"distributed_type": False},
        TWO_GPUS,
        TWO_SPLIT | offering(fsdp_reshard_after_forward=True, fsdp_state_dict_type="SHARDED_STATE_DICT"),
        TWO_GPUS | {"gpu_ids": "0,1", "num_machines": 2, "main_process_ip": "first", "main_process_port": 29500},
    ],
)
def test_answers_that_do_no_harm_are_let_through(config: Path, changes: dict[str, Any]) -> None:
    config.write_text(yaml.safe_dump(ANSWERS | changes))
    launch_config.check()
    load_config_from_file(str(config))


def test_no_config_is_needed_and_json_is_read_too(config: Path) -> None:
    launch_config.check()
    config.with_suffix(".json").write_text(json.dumps(ANSWERS | {"mixed_precision": "fp16"}))
    with pytest.raises(MachineError, match=r"default_config.json: mixed_precision: found fp16; expected 'no' or bf16"):
        launch_config.check()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_of_the_repository_pass(path: Path) -> None:
    assert list(launch_config._findings(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed_precision": "fp16"}, "mixed_precision: found fp16; expected 'no' or bf16"),
        ({"mixed_precision": "fp8"}, "mixed_precision: found fp8"),
        ({"mixed_precision": "half"}, "mixed_precision: found half"),
        (
            {"mixed_precision": False},
            "mixed_precision: found no, which YAML reads as false; expected 'no', with quotes",
        ),
        ({"mixed_precision": None, "fp16": True}, "mixed_precision: found fp16"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: unknown key"),
        ({1: 4}, "1: unknown key"),
        (TWO_SPLIT | {"fsdp_config": "2"}, "fsdp_config.fsdp_version: found 1; expected 2"),
        (TWO_SPLIT, "fsdp_config.fsdp_version: found 1; expected 2"),
        (TWO_SPLIT | {"fsdp_config": {"fsdp_version": 1}}, "fsdp_config.fsdp_version: found 1; expected 2"),
        (TWO_SPLIT | offering(fsdp_offload_params=True), "fsdp_config.fsdp_offload_params: found True; expected false"),
        (TWO_SPLIT | offering(fsdp_reshard_after_forward=False), "fsdp_config.fsdp_reshard_after_forward: found False"),
        (TWO_SPLIT | offering(fsdp_activation_checkpointing=True), "fsdp_config.fsdp_activation_checkpointing: found"),
        ({"distributed_type": "DEEPSPEED"}, "distributed_type: found DEEPSPEED"),
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type: found MEGATRON_LM"),
        ({"distributed_type": "XLA"}, "distributed_type: found XLA"),
        ({"distributed_type": "multi"}, "distributed_type: found multi"),
        ({"distributed_type": None}, "distributed_type: found None"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "compute_environment: found AMAZON_SAGEMAKER"),
        ({"parallelism_config": {"tp_size": 2}}, "parallelism_config: found values"),
        ({"gpu_ids": 0}, "gpu_ids: found 0; expected a string"),
        (TWO_GPUS | {"gpu_ids": "1"}, "gpu_ids: found 1; expected at least two"),
        (TWO_GPUS | {"num_processes": None}, "num_processes: missing"),
        ({"num_processes": -1}, "num_processes: found -1"),
        ({"num_processes": "two"}, "num_processes: found two"),
        ({"num_machines": 2, "main_process_ip": "a"}, "main_process_port: missing"),
    ],
)
def test_a_config_that_no_stage_could_run_with_is_refused(config: Path, changes: dict[Any, Any], words: str) -> None:
    config.write_text(yaml.safe_dump(ANSWERS | changes))
    with pytest.raises(MachineError) as caught:
        launch_config.check()
    line, fix = str(caught.value).splitlines()
    assert line.startswith(f"{config}: {words}")
    assert fix.startswith("fix: ")


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "expected YAML"), ("- a", "no keys"), ("", "no keys"), (b"\xff", "")]
)
def test_a_config_that_cannot_be_read_is_refused(config: Path, text: Any, words: str) -> None:
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MachineError, match=f"{words}.*\nfix: "):
        launch_config.check()


def test_the_first_stage_and_the_launcher_refuse_it(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config.write_text(yaml.safe_dump(ANSWERS))
    assert script("check").main().startswith("check: params.yaml is complete")
    config.write_text(yaml.safe_dump(ANSWERS | {"mixed_precision": "fp16"}))
    with pytest.raises(MachineError, match="mixed_precision: found fp16"):
        script("check").main()
    assert launch.main(["stages/sample.py"]) == 5
    assert "mixed_precision: found fp16" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["--config_file {}", "--config_file={}", "--config-file {}"])
def test_the_config_that_is_named_is_the_one_that_is_checked(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """And an option stands for what the file lacks."""
    monkeypatch.setattr(launch, "_is_one_process", lambda _: True)
    monkeypatch.setattr(launch, "_start", lambda _: 0)
    named, faulty = tmp_path / "named.yaml", ANSWERS | {"mixed_precision": "fp16"}
    arguments = [*form.format(named).split(), "stages/sample.py"]
    assert launch.main(arguments) == 5
    assert f"{named}: no such file" in capsys.readouterr().err
    for text, default, code in ((faulty, ANSWERS, 5), (ANSWERS, faulty, 0)):
        named.write_text(yaml.safe_dump(text))
        config.write_text(yaml.safe_dump(default))
        assert launch.main(arguments) == code
    assert f"{named}: mixed_precision: found fp16" in capsys.readouterr().err
    named.write_text(yaml.safe_dump(ANSWERS | TWO_GPUS | {"num_processes": None}))
    assert launch.main(arguments) == 5
    assert launch.main(["--num-processes", "2", *arguments]) == 0


@pytest.mark.parametrize(("given", "seconds"), [("100", 100), (None, 30)])
def test_processes_have_the_time_to_save_that_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, given: str | None, seconds: int
) -> None:
    from torch.distributed.elastic.multiprocessing.api import PContext

    class Context(PContext):
        def __init__(self) -> None:
            self._tail_logs, self.filtered_stdout, self.filtered_stderr = [], None, None

        def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
            waited.append(timeout)

    waited: list[int] = []
    monkeypatch.setattr(PContext.close, "__defaults__", (None, 30))
    if given is None:
        monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    else:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", given)
    launch._leave_time_to_save()
    Context.__abstractmethods__ = frozenset()
    Context().close(signal.SIGTERM)  # as the agent calls it
    assert waited == [seconds]


def test_a_stage_starts_without_notices_with_the_users_threads_and_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "3"}
    command = [sys.executable, "-m", "ldm.tools.launch", str(path), "--an-option"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 ['--an-option']\n", "")


def test_one_process_on_cpus_is_started_without_accelerate(tmp_path: Path) -> None:
    """Its exit code is 0 or 1, as accelerate's is."""
    program = "import sys; from ldm.tools import launch; print(launch.main(sys.argv[1:]), 'torch' in sys.modules)"
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    for code in (0, 3):
        (tmp_path / "script.py").write_text(f"raise SystemExit({code})")
        command = [sys.executable, "-c", program, str(tmp_path / "script.py")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.stderr) == (f"{min(code, 1)} False\n", "")


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /dev."""
    monkeypatch.setattr(launch, "_DEVICES", tmp_path / "dev")
    (tmp_path / "dev/dri").mkdir(parents=True)
    return tmp_path / "dev"


@pytest.mark.parametrize("device", ["nvidia0", "nvidia15", "dxg", "kfd", "dri/renderD128", "davinci3", "accel"])
def test_accelerate_counts_devices(config: Path, devices: Path, device: str) -> None:
    (devices / "nvidiactl").touch()
    assert launch._is_one_process(["stages/sample.py"])
    (devices / device).touch()
    assert not launch._is_one_process(["stages/sample.py"])


def test_accelerate_reads_its_options_and_its_config(config: Path, devices: Path) -> None:
    assert launch._is_one_process(["stages/sample.py", "--cpu"])
    assert not launch._is_one_process(["--multi_gpu", "stages/sample.py"])
    config.write_text(yaml.safe_dump(ANSWERS))
    assert not launch._is_one_process(["stages/sample.py"])


@pytest.mark.parametrize("threads", [None, "2"])
def test_one_process_sees_what_accelerate_would_tell_it(
    config: Path, monkeypatch: pytest.MonkeyPatch, threads: str | None
) -> None:
    """Besides what Accelerator takes for granted: no compiler, and the device that is there."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "OMP_"))]:
        monkeypatch.delenv(name)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--quiet", "a.py", "--b"]))
    command, theirs = prepare_simple_launcher_cmd_env(arguments)
    seen: list[Any] = []
    monkeypatch.setattr(subprocess, "call", lambda command, env: seen.append((command, env)) or 0)
    assert launch._start(["a.py", "--b"]) == 0
    ((ours, environment),) = seen
    assert ours == command and environment.items() <= theirs.items()
    missing = theirs.keys() - environment.keys()
    assert {name.removeprefix("ACCELERATE_").split("_")[0] for name in missing} == {"DYNAMO", "USE"}
