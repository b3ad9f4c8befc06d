"""What one visitor of the page may ask for: the model, the memory and the disk belong to all of them."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ldm.core.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits of requests."""

    num_images: int = 32
    """Images of one request."""
    num_pixels: int = 2**24
    """Pixels of all images of one request."""
    num_areas: int = 64
    """The same, as a multiple of the pixels of an image of training: a small model needs much memory and time for a
    large image."""
    num_calls: int = 4000
    """How often one request asks the network."""
    num_asked_areas: int = 2**14
    """What the network is asked for in all these calls, as a multiple of an image of training."""
    num_waiting: int = 16
    """Requests that wait for the model; further ones are refused."""
    upload_bytes: int = 16 * 2**20
    """Size of a picture as a file."""
    upload_pixels: int = 2**24
    """Pixels of a picture: those of 4096 x 4096."""
    body_bytes: int = 2**20
    """Size of a request that is no upload."""
    disk_bytes: int = 2**29
    """All files of all visitors together, pictures that they gave and images that were made. With so many, none is
    taken and none is made until some are deleted."""
    file_seconds: int = 3600
    """How long such a file stays."""
    picture_bytes: int = 2**26
    """Pictures that are kept in memory, so that images made from them can be made again."""
    num_guesses: int = 10
    """Wrong passwords of one address, after which it has to wait."""
    guess_seconds: int = 600
    """How long a wrong password counts."""

    def check_images(self, num: int, size_px: tuple[int, int], trained_px: tuple[int, int]) -> None:
        """ConfigError: so many images of this height and width are too much for one request. trained_px: height and
        width of the images of training."""
        if not 1 <= num <= self.num_images:
            fix = "ask for at least one" if num < 1 else "ask for fewer, several times"
            raise ConfigError("number of images", f"{num} images", f"1 to {self.num_images}", fix)
        most = min(self.num_pixels, self.num_areas * math.prod(trained_px))
        if num * math.prod(size_px) > most:
            found = f"{num} images of {size_px[0]} x {size_px[1]} pixels"
            raise ConfigError("size", found, f"at most {most} pixels", "ask for fewer or smaller images")

    def check_calls(self, num: int, num_areas: float) -> None:
        """ConfigError: one request asks the network too often, or for too much in all. num_areas: as in
        `num_asked_areas`."""
        if num > self.num_calls:
            found, fix = f"more than {self.num_calls} calls of the network", "take fewer steps, resamplings or images"
            raise ConfigError("request", found, f"at most {self.num_calls}", fix)
        if num_areas > self.num_asked_areas:
            found = f"calls of the network for more than {self.num_asked_areas} images of the size of training"
            fix = "take fewer steps, resamplings or images, or smaller ones"
            raise ConfigError("request", found, "as many at most, in all calls together", fix)

    def is_full(self, folder: Path) -> bool:
        """Whether the files of visitors in this folder take all of their place."""
        total = 0
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # its hour has just passed
                total += path.stat().st_size
        return total >= self.disk_bytes


DEFAULTS = Limits()
"""Those of `ldm web`."""
