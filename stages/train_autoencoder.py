"""Stage `train_autoencoder`: train the autoencoder, which maps images to latents and back, and measure its quality."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

import torch

from ldm import randomness
from ldm.autoencoder.model.network import ReconstructionObjective
from ldm.autoencoder.model.networks import KIND, build
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.autoencoder.training.reconstruction import ImageBatches, Measurement
from ldm.compute import attention, fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import Shards
from ldm.training.loop import train


def main() -> str:
    params = config.read(TrainAutoencoderParams, "train_autoencoder")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = process.start(params.training.precision, machine, params.training.num_accumulation_steps)
    splits = {name: Shards(Path(paths.images) / name) for name in ("train", "val")}
    inputs = {f"images_{name}": split.sha256 for name, split in splits.items()}
    torch.manual_seed(randomness.key(params.training.seed, "weights"))
    autoencoder = build(params.network)
    objective = ReconstructionObjective(autoencoder, params.reconstruction)
    if machine.compile:
        objective.compile()
    batches = ImageBatches(splits["train"], params)
    shapes = autoencoder.attention_shapes(batches.latent_size)
    attention.prove(accelerator.device, shapes, params.training.precision, trains=True)
    attention.prove(accelerator.device, shapes, "fp32", trains=False)  # the metrics
    measurement = Measurement(splits["val"], params, accelerator)
    run = state.Run(workspace.runs(paths.runs), "train_autoencoder", fingerprint.of(__file__, params, inputs), machine)
    history = train(
        objective,
        batches,
        batches.keys,
        params.training,
        accelerator,
        run,
        validate=measurement.curves,
        picture=measurement.draw,
        name="autoencoder",
    )
    metrics = measurement.metrics(autoencoder)
    with process.outputs(accelerator, Path(paths.autoencoder), Path(paths.autoencoder_results)) as (weights, results):
        if accelerator.is_main_process:
            facts = {"factor": params.network.factor, "latent_channels": params.network.latent_channels}
            settings = params.network.model_dump(mode="json")
            artifact.write(weights, KIND, settings, autoencoder.state_dict(), inputs, facts | history.facts)
            artifact.write_json(results / "metrics.json", metrics)
            history.write(results)
            measurement.draw(objective, results / "reconstructions.png")
    run.remove()
    return f"train_autoencoder: {metrics['psnr_db']:.2f} dB, SSIM {metrics['ssim']:.3f} -> {paths.autoencoder}"


if __name__ == "__main__":
    stage.run(main)
