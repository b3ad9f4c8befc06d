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
from ldm.autoencoder.training.reconstruction import ImageBatches, Measurement, open_splits, prove_attention
from ldm.compute import devices, fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.training.loop import train


def main() -> str:
    params = config.read(TrainAutoencoderParams, "train_autoencoder")
    paths, machine = config.read(PathsParams, "paths"), config.read(MachineParams, "machine")
    network, training = params.network, params.training
    accelerator = devices.start(params.precision, machine, training.num_accumulation_steps if training else 1)
    splits = open_splits(Path(paths.images), training is not None, accelerator)
    inputs = {f"images_{name}": split.sha256 for name, split in splits.items()}
    run = state.Run(workspace.runs(paths.runs), "train_autoencoder", fingerprint.of(__file__, params, inputs), machine)
    torch.manual_seed(randomness.key(training.seed if training else 0, "weights"))
    autoencoder, history = build(network), None
    measurement = Measurement(splits["val"], params, accelerator)
    if training is not None and params.reconstruction is not None:
        objective = ReconstructionObjective(autoencoder, params.reconstruction)
        if machine.compile:
            objective.compile()
        batches = ImageBatches(splits["train"], network, training)
        prove_attention(autoencoder, batches.latent_sizes, training, accelerator.device)
        history = train(
            objective,
            batches,
            batches.keys,
            training,
            accelerator,
            run,
            validate=measurement.curves,
            picture=measurement.picture,
            name="autoencoder",
        )
    metrics = measurement.metrics(autoencoder)
    with process.outputs(accelerator, Path(paths.autoencoder), Path(paths.autoencoder_results)) as (weights, results):
        if accelerator.is_main_process:
            facts = {"factor": network.factor, "latent_channels": network.latent_channels}
            facts |= history.facts if history else {}
            artifact.write(weights, KIND, network.model_dump(mode="json"), autoencoder.state_dict(), inputs, facts)
            artifact.write_json(results / "metrics.json", metrics)
            if history is not None:
                history.write(results)
            measurement.draw(autoencoder, results / "reconstructions.png")
    run.remove()
    return f"train_autoencoder: {metrics['psnr_db']:.2f} dB, SSIM {metrics['ssim']:.3f} -> {paths.autoencoder}"


if __name__ == "__main__":
    stage.run(main)
