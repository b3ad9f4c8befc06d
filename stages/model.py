"""Stage `model`: all that inference needs, in one folder that works without this repository."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.compute import process
from ldm.core import config
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora.params import PrepareParams
from ldm.sampling.params import SampleParams
from ldm.tools.card.evidence import Evidence
from ldm.tools.model import folder
from ldm.tools.model.params import ModelParams
from ldm.tools.model.parts import Parts
from ldm.tools.tasks.params import TasksParams


def main() -> str:
    params, paths = config.read(ModelParams, "model"), config.read(PathsParams, "paths")
    sample, tasks = config.read(SampleParams, "sample"), config.read(TasksParams, "tasks")
    prepare = config.read(PrepareParams, "prepare")
    accelerator = process.join(cpu=True)  # no device and no torch threads
    unet, autoencoder = Path(paths.unet), Path(paths.autoencoder)
    clip, embeddings = Path(paths.clip), Path(paths.embeddings)
    results, machine = Path(paths.model_results), config.read(MachineParams, "machine")
    evidence = Evidence(Path(paths.images), Path(paths.samples), Path(paths.evaluation))
    parts = Parts.of_artefacts(unet, autoencoder, clip, embeddings, sample, tasks, machine)
    with process.output(Path(paths.model), accelerator) as model:
        if accelerator.is_main_process:
            folder.write(model, parts, params.with_words)
            made_of = folder.passports(model)
            evidence.check(made_of["unet"])
            compared = evidence.compare(results, params.memorisation)
            evidence.write_card(model, results, made_of, prepare, sample.drawing, compared, params.card)
    return f"model: {folder.num_bytes(Path(paths.model)) / 1e6:.1f} MB -> {paths.model}"


if __name__ == "__main__":
    stage.run(main)
