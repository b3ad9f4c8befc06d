"""The pictures of the page in the documents are what a person sees."""

from pathlib import Path

import numpy as np
from playwright.sync_api import Browser

from tests.web import screenshots
from tests.web.conftest import Server
from tests.web.person import pixels


def test_the_documents_have_pictures_of_each_look(browser: Browser, server: Server, tmp_path: Path) -> None:
    screenshots.take(browser, server.url, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(screenshots.LOOKS)
    for name, look in screenshots.LOOKS.items():
        made, shown = (pixels((folder / name).read_bytes()) for folder in (tmp_path, screenshots.FOLDER))
        assert made.shape[1] == shown.shape[1] == look["viewport"]["width"]
        assert (np.median(made) > 127) == (np.median(shown) > 127) == (look["color_scheme"] == "light")
        assert (screenshots.FOLDER / name).stat().st_size < 100_000
