"""An autoencoder of photographs with and without each term of its loss, at equal numbers of updates.

`--folder` holds photographs (`photos/*.jpg`) and networks (`models/`: vgg16, alexnet and efficientnet_lite0, as
safetensors with the names of torchvision and timm). Variants train side by side, one process each. The loss sees vgg16;
the metrics see alexnet (LPIPS) and efficientnet_lite0 (Frechet distance). Every fifth photograph is held out for them.
`docs/photographs.md` has the results.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder, to_image, to_signal
from ldm.autoencoder.model.networks import build
from ldm.autoencoder.training import equivariance
from ldm.autoencoder.training.loss_params import PerceptualParams
from ldm.autoencoder.training.objective import ReconstructionObjective
from ldm.autoencoder.training.params import TrainedAutoencoderParams
from ldm.autoencoder.training.perceptual import Lpips
from ldm.autoencoder.training.reconstruction import ImageBatches, psnr, ssim
from ldm.compute import devices
from ldm.compute.state import Run
from ldm.core import images
from ldm.core.buckets import Buckets
from ldm.core.params import MachineParams
from ldm.evaluation.metrics import frechet_distance
from ldm.training.loop import train

VARIANTS: dict[str, tuple[float, float, bool]] = {
    "l2": (0, 0, False),
    "lpips": (1, 0, False),
    "gan": (0, 0.5, False),
    "lpips_gan": (1, 0.5, False),
    "all": (1, 0.5, True),
    "gan_equi": (0, 0.5, True),
    "lpips_equi": (1, 0, True),
    "light": (0.3, 0.2, False),
}
"""Weights of LPIPS and of the discriminator, and whether latents are scaled and turned. `l2` is the plain loss; the
others have l1."""
NUM_VAL_CROPS = 2048
NUM_PICTURES = 12
NUM_ROWS = 64
HELD_OUT_EVERY = 5
MAX_WAIT_S = 20
DISCRIMINATOR_START = 0.3


class Crops:
    """Square crops of photographs: number i is a place that belongs to i, mirrored or not."""

    def __init__(self, photos: Sequence[np.ndarray], size_px: int, count: int, seed: int) -> None:
        self._photos, self._size, self._seed = photos, size_px, seed
        self.buckets = Buckets([(size_px, size_px)], [count])
        self.image_sizes_px = [(size_px, size_px)]

    def images(self, numbers: Sequence[int]) -> Tensor:
        return images.stacked([self._crop(number) for number in numbers])

    @cached_property
    def keys(self) -> list[str]:
        return [str(i) for i in range(int(self.buckets.counts[0]))]

    def _crop(self, number: int) -> np.ndarray:
        which, top, left, mirrored = np.random.default_rng((self._seed, number)).random(4)
        photo = self._photos[int(which * len(self._photos))]
        y, x = (int(place * (side - self._size + 1)) for place, side in zip((top, left), photo.shape[:2], strict=True))
        crop = photo[y : y + self._size, x : x + self._size]
        return np.ascontiguousarray(crop[:, ::-1] if mirrored < 0.5 else crop)


def params(variant: str, models: Path, num_steps: int, batch_size: int) -> TrainedAutoencoderParams:
    """`train_autoencoder.source` of a variant."""
    lpips, gan, equi = VARIANTS[variant]
    perceptual = {"backbone": "vgg", "weights": str(models / "vgg16.safetensors"), "weight": lpips}
    adversarial = {
        "start_step": int(DISCRIMINATOR_START * num_steps),
        "learning_rate": 2e-4,
        "betas": [0.5, 0.9],
        "max_grad_norm": 1.0,
        "weight": gan,
        "channels": 64,
        "num_layers": 3,
    }
    section: dict[str, Any] = {
        "kind": "train",
        "network": {
            "kind": "kl",
            "patch_px": 2,
            "channels": [64, 128, 256],
            "num_res_blocks": 2,
            "latent_channels": 4,
            "middle_attention": False,
            "quant_conv": True,
            "norm_groups": 16,
        },
        "reconstruction": {
            "error": "l2" if variant == "l2" else "l1",
            "kl_weight": 1e-6,
            "learned_log_variance": False,
            "gradient_weight": 0.0,
            "num_gradient_scales": 3,
            "perceptual": perceptual if lpips else None,
            "adversarial": adversarial if gan else None,
            "equivariance": {"probability": 0.5, "min_scale": 0.25} if equi else None,
        },
        "training": {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "num_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "betas": [0.9, 0.99],
            "weight_decay": 0.0,
            "num_warmup_steps": min(100, num_steps // 4),
            "final_learning_rate_fraction": 0.02,
            "max_grad_norm": 1.0,
            "ema_decay": 0.995,
            "precision": "bf16",
            "seed": 0,
            "log_every_steps": 50,
            "validate_every_steps": 10**6,
            "save_every_steps": 10**6,
            "num_kept_states": 1,
            "max_nonfinite_steps": 10,
        },
    }
    return TrainedAutoencoderParams.model_validate_json(json.dumps(section), strict=True)


def features(models: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pooled features of efficientnet_lite0 of uint8 images, at 224 pixels."""
    import timm
    from safetensors.torch import load_file

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).to(device).eval()
    weights = load_file(models / "efficientnet_lite0.safetensors")
    net.load_state_dict({name: w.float() for name, w in weights.items() if not name.startswith("classifier")})

    @torch.no_grad()
    def extract(image: Tensor) -> Tensor:
        x = nn.functional.interpolate(image.float(), size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        return net((x - 127) / 128)

    return extract


@torch.no_grad()
def measure(autoencoder: Autoencoder, crops: Crops, models: Path, device: torch.device, count: int) -> dict[str, float]:
    """Means over the crops, and the Frechet distance between features of crops and of their reconstructions."""
    alex = PerceptualParams(backbone="alex", weights=str(models / "alexnet.safetensors"), weight=1)
    distance, extract = Lpips(alex).to(device), features(models, device)
    sums: dict[str, float] = {}
    real, fake = list[Tensor](), list[Tensor]()
    for start in range(0, count, NUM_ROWS):
        image = crops.images(range(start, min(start + NUM_ROWS, count))).to(device)
        z = autoencoder.encode(to_signal(image)).mode()
        other = to_image(autoencoder.decode(z))
        half, less = torch.Size(side // 2 for side in z.shape[2:]), torch.Size(side // 2 for side in image.shape[2:])
        small = to_image(equivariance.resized(to_signal(image), less))
        values = {
            "psnr_db": psnr(image, other),
            "ssim": ssim(image, other),
            "lpips_alex": distance(to_signal(image), to_signal(other)),
            "psnr_db_halved": psnr(small, to_image(autoencoder.decode(equivariance.resized(z, half)))),
            "psnr_db_turned": psnr(image.rot90(1, (2, 3)), to_image(autoencoder.decode(z.rot90(1, (2, 3))))),
        }
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + float(value.double().sum())
        real.append(extract(image).cpu())
        fake.append(extract(other).cpu())
    return {name: value / count for name, value in sums.items()} | {
        "frechet_efficientnet": frechet_distance(torch.cat(fake), torch.cat(real))
    }


@torch.no_grad()
def draw(autoencoder: Autoencoder | None, crops: Crops, device: torch.device, path: Path) -> None:
    """The first crops, or their reconstructions, in a row."""
    image = crops.images(range(NUM_PICTURES)).to(device)
    if autoencoder is not None:
        image = to_image(autoencoder.decode(autoencoder.encode(to_signal(image)).mode()))
    images.grid(list(image.cpu()), num_columns=NUM_PICTURES, captions=None).save(path)


def agreed_steps(out: Path, variant: str, ms: float, seconds: float, num_variants: int) -> int:
    """Steps that the slowest of all variants can take in the time: each one writes what a step takes, and waits."""
    (out / f"{variant}.ms").write_text(str(ms))
    waits_until = time.monotonic() + MAX_WAIT_S
    while len(list(out.glob("*.ms"))) < num_variants and time.monotonic() < waits_until:
        time.sleep(0.05)
    time.sleep(0.5)  # a file that is there may still be empty
    files = list(out.glob("*.ms"))
    return max(10, int(1000 * seconds / max(float(file.read_text()) for file in files)))


def main() -> None:
    """Train one variant and measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for the training of the slowest variant")
    parser.add_argument("--num-variants", type=int, required=True, help="that train at the same time")
    parser.add_argument("--num-trial-steps", type=int, default=60)
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-val-crops", type=int, default=NUM_VAL_CROPS)
    given = parser.parse_args()
    models, out, name = given.folder / "models", given.out, given.variant
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((given.folder / "photos").glob("*.jpg"))]
    seen = [photo for i, photo in enumerate(photos) if i % HELD_OUT_EVERY]
    crops = Crops(seen, given.size_px, 10**6, 0)
    val = Crops(photos[::HELD_OUT_EVERY], given.size_px, given.num_val_crops, 1)
    machine = MachineParams.model_validate_json(
        json.dumps(
            {"threads": 1, "num_workers": 0, "attention": "auto", "compile": False}
            | {"keep_finished_states": False, "num_kept_runs": 1, "max_run_age_days": 1}
        )
    )

    def trained(num_steps: int) -> tuple[Autoencoder, dict[str, float], float]:
        section = params(name, models, num_steps, given.batch_size)
        assert section.training and section.reconstruction
        accelerator = devices.start("bf16", machine)
        torch.manual_seed(randomness.key(0, "weights"))
        objective = ReconstructionObjective(build(section.network), section.reconstruction)
        batches = ImageBatches(crops, section.network, section.reconstruction, section.training)  # pyright: ignore[reportArgumentType]
        run = Run(out / f"runs_{name}", str(num_steps), {"variant": name})
        times: list[float] = []

        def timed(step: int, rows: slice) -> dict[str, Tensor]:
            times.append(time.monotonic())
            return batches(step, rows)

        history = train(
            objective,
            timed,
            lambda step: [],
            section.training,
            accelerator,
            run,
            validate=lambda objective: {},
            adversary=section.reconstruction.adversarial,
            name=name,
        )
        run.remove()
        settled = times[num_steps // 4 :]
        return objective.autoencoder, history.training[-1], (settled[-1] - settled[0]) / (len(settled) - 1)

    _, _, step_s = trained(given.num_trial_steps)
    num_steps = agreed_steps(out, name, 1000 * step_s, given.seconds, given.num_variants)
    autoencoder, last, step_s = trained(num_steps)
    device = next(autoencoder.parameters()).device
    draw(autoencoder, val, device, out / f"{name}.png")
    if name == "l2":
        draw(None, val, device, out / "original.png")
    result = {"variant": name, "num_steps": num_steps, "step_s": step_s, "last": last}
    result |= measure(autoencoder.float(), val, models, device, given.num_val_crops)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1))
    print("RESULT", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
