"""Stage `prepare`: turn a corpus into shards of images and shards of captions with the same keys."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.compute import process, state
from ldm.core import config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora import kinds, preparation, units
from ldm.corpora.params import PrepareParams


def main() -> str:
    params = config.read(PrepareParams, "prepare")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    images, captions, results = Path(paths.images), Path(paths.captions), Path(paths.prepare_results)
    accelerator = process.join(cpu=True)  # no device and no torch threads
    run = state.Run(workspace.runs(paths.runs), "prepare", units.made_by(__file__, params), machine)
    summary = ""
    with run.opened(accelerator):
        with process.main_first(accelerator):  # it may have to download the corpus
            found = kinds.units(params, Path(paths.source))
        with process.outputs(accelerator, images, captions) as (image_shards, caption_shards):
            done = units.make(found, run, params, machine.num_workers, accelerator)
            if accelerator.is_main_process:
                # These results are kept even if the corpus is refused, since they show why.
                with stage.output(results) as folder:
                    items = units.read(done, run)
                    report = preparation.write(items, image_shards, caption_shards, folder, params)
                report.check(params.max_reject_fraction, results / "rejected.jsonl")
                preparation.write_passports(image_shards, caption_shards, params)
                units.retain(found, run)
                counts = ", ".join(f"{split.num_samples} {name}" for name, split in report.splits.items())
                distinct = f"{len(report.splits['train'].captions)} distinct captions to train on"
                summary = f"{counts}, {report.num_rejected.total()} rejected, {distinct}"
    return f"prepare: {summary} -> {images}, {captions}"


if __name__ == "__main__":
    stage.run(main)
