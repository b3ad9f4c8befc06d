"""Everything that wants a GPU, in one command of ten minutes that downloads nothing: `make gpu`.

First benchmarks, alone; then the default recipe, trained to its end by its stages, with the tests of mark `gpu` beside
it. On a GPU the results are written to docs/gpu.json, with the card's name, and to the tables of docs/gpu.md. Without
one the same runs at the least size, the recipe tiny for the default, and its results, which mean nothing, go to
runs/gpu: so it cannot rot.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measuring, page
from benchmarks.measuring import DEVICE, ROOT, Row
from ldm.core import config
from ldm.core.params import MachineParams
from ldm.tools import recipe
from ldm.training.history import PACE

PAGE, RESULT = ROOT / "docs/gpu.md", ROOT / "docs/gpu.json"
BENCHMARKS = ("train_step", "sample", "many", "attention")
STAGES = (
    *("prepare", "train_autoencoder", "encode_latents", "train_clip", "embed_text", "train_unet"),
    *("sample", "evaluate"),
)
SCORES = tuple(f"scene_{name}" for name in ("accuracy_held_out", "strict_accuracy_held_out", "accuracy_unseen"))
IS_SMALL = DEVICE.type == "cpu"
NUM_SECONDS = 3600 if IS_SMALL else 600
"""For everything, unless `--seconds` says otherwise; a CPU may have other work. A part that is not done by then counts
as failed, and what it found is written with the results of the others."""
NUM_SECONDS_TO_STOP = 10
NUM_TEST_PROCESSES = 0 if IS_SMALL else 4
"""What the tests wait for is torch.compile, which computes on CPUs."""
Part = Callable[[Path, float, dict[str, Any]], None]
"""Of a folder of its own, the time at which it is ended, and what it found, to which it adds as it goes."""
CTRL_C = "ended by Ctrl-C"


def tests(folder: Path, end: float, found: dict[str, Any]) -> None:
    """Numbers of tests by their end."""
    files = sorted(str(path) for path in (ROOT / "tests").glob("test_*.py") if "pytest.mark.gpu" in path.read_text())
    report = folder / "tests.xml"
    options = ["-m", "gpu", "--numprocesses", str(NUM_TEST_PROCESSES), f"--junitxml={report}"]
    try:
        _run(["-m", "pytest", *options, *files], ROOT, end, is_checked=False)
    finally:
        # A pytest that was killed may have left a half.
        with suppress(FileNotFoundError, ElementTree.ParseError):
            (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
            found |= {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    if not found:
        raise RuntimeError("pytest wrote no report")
    if found["failures"] or found["errors"]:
        raise RuntimeError("a test failed")


def benchmarks(folder: Path, end: float, found: dict[str, Any]) -> None:
    """What each of them found. One that fails does not keep the others from running."""
    failed: list[str] = []
    for name in BENCHMARKS:
        size = ["--small"] if IS_SMALL else []
        try:
            _run(["-m", f"benchmarks.{name}", *size, "--out", str(folder)], ROOT, end)
            result = json.loads((folder / DEVICE.type / f"{name}.json").read_bytes())
            found[name] = {"tables": result["tables"], "ratios": result["ratios"]}
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            failed.append(str(error))
    if failed:
        raise RuntimeError("; ".join(failed))


def recipes(folder: Path, end: float, found: dict[str, Any]) -> None:
    """Seconds of every stage, speeds of the trainings, and scores, of a recipe that is run in a folder of its own."""
    name = "tiny" if IS_SMALL else recipe.DEFAULT
    _write_params(folder, name)
    found |= {"recipe": name, "seconds": {}, "trainings": {}, "scores": {}, "ratios": {}}
    for stage in STAGES:
        begin = time.monotonic()
        try:
            _run([str(ROOT / "stages" / f"{stage}.py")], folder, end)
        finally:
            found["seconds"][stage] = round(time.monotonic() - begin, 1)
            for path in folder.glob(f"runs/{stage}/*/{PACE}"):
                found["trainings"][stage] = speeds = _speeds(path)
                found["ratios"]["data_wait"] = max(found["ratios"].get("data_wait", 0), speeds.get("data_wait", 0))
    metrics = json.loads((folder / "data/evaluation/metrics.json").read_bytes())
    found["scores"] |= {score: metrics[score] for score in SCORES if score in metrics}


def _write_params(folder: Path, name: str) -> None:
    """The params of a recipe, with runs that are kept for their speeds, and all cores at work in `prepare`."""
    text = (ROOT / "recipes" / f"{name}.yaml").read_text() if name == recipe.DEFAULT else recipe.complete(name)
    machine = config.read(MachineParams, "machine", measuring.PARAMS)
    num_workers = len(os.sched_getaffinity(0)) - 1
    for old, new in [
        (f"keep_finished_states: {str(machine.keep_finished_states).lower()}", "keep_finished_states: true"),
        (f"  num_workers: {0 if IS_SMALL else machine.num_workers}\n", f"  num_workers: {num_workers}\n"),
    ]:
        assert text.count(old) == 1, f"{old!r} is not once in the recipe {name}"
        text = text.replace(old, new)
    (folder / config.PARAMS).write_text(text)
    (folder / config.PATHS).write_text((ROOT / config.PATHS).read_text())
    shutil.copytree(ROOT / "recipes/bands", folder / "recipes/bands")


def _speeds(table: Path) -> dict[str, float]:
    """Medians over the rows of a training, without the first."""
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[1:]
    names = ("samples_per_second", "data_wait", "memory_gb")
    return {name: median(float(row[name]) for row in rows) for name in names} if rows else {}


def _run(command: Sequence[str], where: Path, end: float, *, is_checked: bool = True) -> None:
    """A Python command. When its time is over it is asked to stop, as by Ctrl-C, so that it can write what it has."""
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Runs of stages lie in the folder of their own, not among those that the user shares.
    environment = {name: value for name, value in os.environ.items() if name != "LDM_RUNS"} | {"PYTHONPATH": places}
    left = max(end - time.monotonic(), 1)
    with subprocess.Popen([sys.executable, *command], cwd=where, env=environment) as process:
        try:
            code = process.wait(left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(NUM_SECONDS_TO_STOP)
            process.kill()
            raise TimeoutError(f"ended after {left:.0f} seconds: {' '.join(command)}") from None
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if is_checked and code:
        raise RuntimeError(f"exit code {code}: {' '.join(command)}")


def measure(
    folder: Path, groups: Sequence[Sequence[Part]], num_seconds: float, write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The results of all parts, and what failed; `write` has what there is whenever a part is done. The parts of a
    group run side by side, the groups in turn. KeyboardInterrupt: after Ctrl-C, when all that was found is written."""
    start = time.monotonic()
    result: dict[str, Any] = {"machine": measuring.facts(), "seconds": {}, "failed": {}}

    def note(part: Future[tuple[str, dict[str, Any], float, str]]) -> None:
        name, found, seconds, why = part.result()
        result[name] = found
        result["seconds"] |= {name: seconds, "all": round(time.monotonic() - start, 1)}
        result["failed"] |= {name: why} if why else {}
        write(result)

    with ThreadPoolExecutor() as pool:
        for group in groups:
            running = [pool.submit(_done, part, folder, start + num_seconds) for part in group]
            try:
                for each in as_completed(running):
                    note(each)
            except KeyboardInterrupt:  # the commands of the parts got it too, and end
                for each in running:
                    note(each)
                raise
            if CTRL_C in result["failed"].values():
                raise KeyboardInterrupt
    return result


def _done(part: Part, folder: Path, end: float) -> tuple[str, dict[str, Any], float, str]:
    """Name of a part, what it found in a folder of its own, its seconds, and why it failed, without paths."""
    name, begin, why = part.__name__, time.monotonic(), ""
    found: dict[str, Any] = {}
    print(f"\n# {name}", flush=True)
    own = folder / name
    own.mkdir(parents=True)
    try:
        part(own, end, found)
    except KeyboardInterrupt:
        why = CTRL_C
    except Exception as error:  # whatever it is, the other parts go on
        why = f"{type(error).__name__}: {error}"
        for path in (f"{folder}/", f"{ROOT}/", str(folder), str(ROOT)):
            why = why.replace(path, "")
    return name, found, round(time.monotonic() - begin, 1), why


def tables(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, seconds = result["machine"], result["seconds"]
    where = f"{machine['device']}, commit {machine['commit']}, torch {machine['torch']}"
    parts = [
        f"{where}; {seconds['all']:.0f} seconds.\n",
        *(f"**{name} failed**: {why}\n" for name, why in result["failed"].items()),
    ]
    if not IS_SMALL:
        measured = {**result.get("benchmarks", {}), "recipes": result.get("recipes") or {"ratios": {}}}
        parts.append(page.targets({DEVICE.type: measured}))
    if result.get("tests"):
        parts.append(page.markdown([result["tests"]]))
    for each in result.get("benchmarks", {}).values():
        parts += [f"{title}:\n\n{page.markdown(rows)}" for title, rows in each["tables"].items()]
        ratios = [{"ratio": f"`{name}`", "found": page.value_of(value)} for name, value in each["ratios"].items()]
        parts += [page.markdown(ratios)] if ratios else []
    if result.get("recipes"):
        found = result["recipes"]
        stages: list[Row] = [{"stage": name, "seconds": value} for name, value in found["seconds"].items()]
        trainings: list[Row] = [{"training": name, **speeds} for name, speeds in found["trainings"].items()]
        scores: list[Row] = [{"score": name, "found": value} for name, value in found["scores"].items()]
        parts += [
            f"Recipe {found['recipe']}:\n",
            *(page.markdown(rows) for rows in (stages, trainings, scores) if rows),
        ]
    return "\n".join(parts)


def _write(result: dict[str, Any]) -> None:
    """The JSON, and on a GPU the page."""
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (ROOT / "runs/gpu" / RESULT.name if IS_SMALL else RESULT).write_text(text, encoding="utf-8")
    if not IS_SMALL:
        PAGE.write_text(page.rewritten(PAGE.read_text(encoding="utf-8"), "gpu", tables(result)), encoding="utf-8")


def main() -> None:
    """Run all, and write the results. Exit code 1: a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=NUM_SECONDS, help="for everything (default %(default)s)")
    given = parser.parse_args()
    # In the background of a shell Ctrl-C is ignored, also by the commands that are asked to stop by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = ROOT / "runs/gpu"
    shutil.rmtree(folder, ignore_errors=True)
    result = measure(folder, ((benchmarks,), (recipes, tests)), given.seconds, _write)
    print(f"\n{tables(result)}")
    sys.exit(bool(result["failed"]))


if __name__ == "__main__":
    main()
