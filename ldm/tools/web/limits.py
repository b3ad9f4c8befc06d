"""What one visitor of the page may ask for: the model, the memory and the disk belong to all of them."""

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
    """Pixels of all images that are computed at once."""
    num_calls: int = 4000
    """How often one request asks the network."""
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

    def check_images(self, num: int, size_px: tuple[int, int]) -> None:
        """ConfigError: so many images of this height and width are too much for one request."""
        if not 1 <= num <= self.num_images:
            found, fix = f"{num} images", "ask for fewer, several times"
            raise ConfigError("number of images", found, f"1 to {self.num_images}", fix)
        height, width = size_px
        if num * height * width > self.num_pixels:
            found = f"{num} images of {height} x {width} pixels"
            raise ConfigError("size", found, f"at most {self.num_pixels} pixels", "ask for fewer or smaller images")

    def is_full(self, folder: Path) -> bool:
        """Whether the files of visitors in this folder take all of their place."""
        total = 0
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # its hour has just passed
                total += path.stat().st_size
        return total >= self.disk_bytes


DEFAULTS = Limits()
"""Those of `ldm web`."""
