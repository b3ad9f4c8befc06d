"""Latents and text embeddings -> the denoiser that turns noise and a caption into a latent."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm that stands beside this script

from ldm import stage  # before torch, whose MKL reads once how it is to multiply

# isort: split

import torch

from ldm import artifact, attention, config, denoising, fingerprint, randomness, state, workspace
from ldm.diffusion import DenoisingObjective
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams
from ldm.params.train_unet import TrainUNetParams
from ldm.training import train
from ldm.unet import UNet


def main() -> str:
    params = config.read(TrainUNetParams, "train_unet")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = stage.start(params.training.precision, machine, params.training.num_accumulation_steps)
    folders = [Path(path) for path in (paths.latents, paths.captions, paths.embeddings, paths.autoencoder)]
    inputs = denoising.load(*folders)
    denoising.check_fits(params, inputs)

    torch.manual_seed(randomness.key(params.training.seed, "weights"))
    unet = UNet(params.network)
    decoder = inputs.autoencoder.attention_shapes(params.network.latent_size)
    attention.prove(accelerator.device, unet.attention_shapes, params.training.precision, trains=True)
    for precision in (params.training.precision, "fp32"):  # pictures on the way, the last picture
        attention.prove(accelerator.device, [*unet.attention_shapes, *decoder], precision, trains=False)
    sha256 = dict(inputs.sha256)
    if params.init_from is not None:
        sha256["init_from"] = denoising.load_weights(unet, params, Path(params.init_from))
    objective = DenoisingObjective(unet, params.diffusion)
    if machine.compile:
        unet.compile()
    validation = denoising.Validation(inputs.val, params, accelerator)
    pictures = denoising.Pictures(inputs.val, inputs.autoencoder, params, accelerator.device)
    run = state.Run(workspace.runs(paths.runs), "train_unet", fingerprint.of(params, sha256), machine)
    batches = denoising.LatentBatches(inputs.train, params)
    history = train(
        objective,
        batches,
        batches.keys,
        params.training,
        accelerator,
        run,
        validate=validation,
        picture=pictures,
        name="unet",
    )

    metrics = denoising.summary(history.training, history.validation)
    with stage.outputs(accelerator, Path(paths.unet), Path(paths.unet_results)) as (weights, results):
        if accelerator.is_main_process:
            settings = {key: getattr(params, key).model_dump(mode="json") for key in ("network", "diffusion")}
            facts = inputs.facts | {"caption_dropout": params.diffusion.caption_dropout} | history.facts
            artifact.write(weights, "unet", settings, unet.state_dict(), sha256, facts)
            artifact.write_json(results / "metrics.json", metrics)
            history.write(results)
            pictures(objective, results / "z0_hat.png")
    run.remove()
    return f"train_unet: validation loss {metrics['validation_loss']:.4f} -> {paths.unet}"


if __name__ == "__main__":
    stage.run(main)
