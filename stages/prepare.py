"""Stage `prepare`: turn a corpus into shards of images and shards of captions with the same keys."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import config, stage
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora import kinds, preparation
from ldm.corpora.params import PrepareParams


def main() -> str:
    params = config.read(PrepareParams, "prepare")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    images, captions, results = Path(paths.images), Path(paths.captions), Path(paths.prepare_results)
    with stage.outputs(images, captions) as (image_shards, caption_shards):
        # These results are kept even if the corpus is refused, since they show why.
        with stage.output(results) as folder:
            pairs = kinds.pairs(params, Path(paths.source))
            report = preparation.prepare(pairs, image_shards, caption_shards, folder, params, machine.num_workers)
        report.check(params.max_reject_fraction, results / "rejected.jsonl")
        preparation.write_passports(image_shards, caption_shards, params)
    counts = ", ".join(f"{split.num_samples} {name}" for name, split in report.splits.items())
    captions_of_train = f"{len(report.splits['train'].hashes)} distinct captions to train on"
    rejected = report.num_rejected.total()
    return f"prepare: {counts}, {rejected} rejected, {captions_of_train} -> {images}, {captions}"


if __name__ == "__main__":
    stage.run(main)
