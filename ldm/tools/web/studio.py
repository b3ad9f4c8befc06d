"""The model behind the page: one thread owns it, does one request after the other, and can be told to stop."""

import math
import secrets
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ldm.core import images
from ldm.core.errors import ConfigError, Interrupted
from ldm.sampling.guidance.params import AutoguidanceParams, ClassifierParams, GuidanceParams
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.text.embedding.words import words_of
from ldm.tools.tasks import draw
from ldm.tools.tasks.params import OutpaintParams, TaskParams
from ldm.tools.tasks.pictures import Picture
from ldm.tools.web import watching
from ldm.tools.web.limits import Limits

if TYPE_CHECKING:
    from ldm.tools.pipeline import Pipeline

_MAX_NEW_SEED = 10**9
_NUM_HINTS = 12
PICTURE = "picture"
"""Where something is wrong with a PNG that was made before."""


@dataclass(frozen=True)
class Request:
    """Images that a visitor asks for. task: a field of `TasksParams`; None = text to image."""

    task: str | None
    prompt: str
    num_images: int
    settings: Mapping[str, Any]
    """Fields of the task and of the drawing."""
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class Progress:
    """How often the network was asked, of how many times."""

    done: int
    total: int


@dataclass(frozen=True)
class Note:
    """What a visitor should know, though it is no error."""

    text: str


@dataclass(frozen=True)
class Made:
    """One image, as the PNG that `ldm` writes."""

    png: bytes


@dataclass(frozen=True)
class Replayed:
    """An image that was made again. num_different: values of its pixels that are not the same."""

    num_values: int
    num_different: int


Event = Progress | Note | Made | Replayed


class Stop(Protocol):
    """A flag that another thread sets."""

    def is_set(self) -> bool:
        """Whether it is set."""
        ...


class Studio:
    """A model that draws for several visitors, one request at a time."""

    def __init__(self, load: "Callable[[], Pipeline]", limits: Limits) -> None:
        """load: makes the pipeline. It is called in the thread that draws, which may set its own number of threads."""
        self.limits = limits
        self.pictures = Pictures(limits.picture_bytes)
        # The last bits of an image depend on the number of threads, which belongs to the thread that computes.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._pipeline = self._worker.submit(load).result()
        self._visitors: dict[threading.Event, str] = {}
        """What stops a request that is not done -> who asked for it."""
        self._lock = threading.Lock()
        """Of `_visitors`."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the images of training."""
        return self._pipeline.generator.image_size_px(self._pipeline.drawing)

    def size_of(self, task: str | None, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of the images of a request. ConfigError: the settings are illegal, or one is too large."""
        _, drawing = _settings(self._pipeline, task, settings)
        self._pipeline.generator.check_drawing(drawing)
        size_px = self._pipeline.generator.image_size_px(drawing)
        self._check(1, size_px, None)
        return size_px

    @property
    def words(self) -> list[str] | None:
        """All words of its captions, sorted; None = not known."""
        texts = self._pipeline.generator.text.texts
        return None if texts is None else sorted(words_of(texts))

    @property
    def takes_any_size(self) -> bool:
        """Whether images may have other sizes than those of training."""
        return self._pipeline.generator.unet.takes_any_size

    def draw(self, request: Request, visitor: str) -> Iterator[Event]:
        """Do a request after all earlier ones. Closing the iterator stops it. UserError, while it is read: the request
        is illegal or too large, or was cancelled."""
        return self._listened(visitor, lambda tell, stop: self._draw(request, tell, stop))

    def replay(self, png: bytes, visitor: str, guides: frozenset[str]) -> Iterator[Event]:
        """Make the image of a PNG again and compare. guides: folders of models that it may name. UserError: as `draw`,
        or these models cannot have made it, or the pictures that it was made from are no longer here."""
        return self._listened(visitor, lambda tell, stop: self._replay(png, guides, tell, stop))

    def cancel(self, visitor: str) -> bool:
        """Stop what is done for a visitor before the network is asked again, and what waits; whether there is
        anything."""
        with self._lock:
            found = [stop for stop, asking in self._visitors.items() if asking == visitor]
        for stop in found:
            stop.set()
        return bool(found)

    def close(self) -> None:
        """Stop at the next step, and wait for it."""
        with self._lock:
            found = list(self._visitors)
        for stop in found:
            stop.set()
        self._worker.shutdown()

    def _listened(
        self, visitor: str, work: Callable[[Callable[[Event], None], threading.Event], None]
    ) -> Iterator[Event]:
        events: SimpleQueue[Event | Future[None]] = SimpleQueue()
        stop = threading.Event()
        with self._lock:
            self._visitors[stop] = visitor

        def started() -> None:
            if stop.is_set():
                raise Interrupted("request", "cancelled before it began", "a finished one", "ask again")
            work(events.put, stop)

        def ended(result: Future[None]) -> None:
            with self._lock:
                del self._visitors[stop]
            events.put(result)

        self._worker.submit(started).add_done_callback(ended)
        return _heard(events, stop)

    def _draw(self, request: Request, tell: Callable[[Event], None], stop: Stop) -> None:
        pipeline = self._pipeline
        task, drawing = _settings(pipeline, request.task, request.settings)
        size_px = pipeline.generator.image_size_px(drawing)
        self._check(request.num_images * (1 if task is None else task.num_per_prompt), size_px, task)
        total = self._rehearse(lambda rehearsed: list(_pngs(rehearsed, request)))
        self.pictures.remember(request.pictures.values())
        with _warnings_to(tell):
            second = "" if task is None else task.second_prompt or ""
            _tell_unknown(pipeline, [request.prompt, second, drawing.negative_prompt], tell)
            for png in _pngs(watching.watched(pipeline, _Steps(tell, stop, total)), request):
                tell(Made(png))

    def _replay(self, png: bytes, guides: frozenset[str], tell: Callable[[Event], None], stop: Stop) -> None:
        origin = Origin.read(png, PICTURE)
        found = images.read_png(png, PICTURE)
        drawing = origin.drawing(self._pipeline.drawing, PICTURE)
        check_guide(drawing.guidance, guides)
        given = self.pictures.of(origin)
        work = draw.again(origin, given, PICTURE)
        self._check(origin.batch_size, self._pipeline.generator.image_size_px(drawing), work and work.params)
        total = self._rehearse(lambda rehearsed: rehearsed.replay(origin, given))
        with _warnings_to(tell):
            again = watching.watched(self._pipeline, _Steps(tell, stop, total)).replay(origin, given)
        pixels = again.permute(1, 2, 0).numpy()
        is_same_size = found.shape == pixels.shape
        num_different = int((found != pixels).sum()) if is_same_size else found.size
        tell(Replayed(found.size, num_different))

    def _check(self, num_images: int, size_px: tuple[int, int], task: TaskParams | None) -> None:
        margin = task.margin_px if isinstance(task, OutpaintParams) else 0
        self.limits.check_images(num_images, (size_px[0] + 2 * margin, size_px[1] + 2 * margin), self.size_px)

    def _rehearse(self, work: "Callable[[Pipeline], object]") -> int:
        """How often the network is asked. ConfigError: too often, or for too much, or the work is refused."""
        num_calls, num_values = 0, 0
        num_trained = math.prod(self._pipeline.generator.unet.latent_shape)

        def count(z: Tensor) -> None:
            nonlocal num_calls, num_values
            num_calls, num_values = num_calls + 1, num_values + z.numel()
            self.limits.check_calls(num_calls, num_values / num_trained)

        with warnings.catch_warnings(action="ignore"):
            work(watching.rehearsed(self._pipeline, count))
        return num_calls


def _heard(events: "SimpleQueue[Event | Future[None]]", stop: threading.Event) -> Iterator[Event]:
    """What is told until the work is done, or raises what it has raised."""
    try:
        while not isinstance(event := events.get(), Future):
            yield event
        event.result()
    finally:
        stop.set()


class Pictures:
    """Pictures that visitors gave, by their hashes: the last ones, as many as fit."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._kept: OrderedDict[str, Picture] = OrderedDict()

    def remember(self, pictures: Iterable[Picture]) -> None:
        """Remember some more, and let go of those that were not used for longest."""
        for picture in pictures:
            self._kept[picture.sha256] = picture
            self._kept.move_to_end(picture.sha256)
        while sum(picture.pixels.nbytes for picture in self._kept.values()) > self._num_bytes:
            self._kept.popitem(last=False)

    def of(self, origin: Origin) -> dict[str, Picture]:
        """Those that an image was made from. ConfigError: one is no longer here."""
        found = self.left_of(origin)
        missing = [name for name in origin.pictures if name not in found]
        if missing:
            reason, fix = f"no {missing[0]} to make it from", "draw it anew with the same picture, or use `ldm replay`"
            raise ConfigError(PICTURE, reason, "a picture that was given to this page since it started", fix)
        return found

    def left_of(self, origin: Origin) -> dict[str, Picture]:
        """Those of them that are still here."""
        found = {name: self._kept.get(sha256) for name, sha256 in origin.pictures.items()}
        return {name: picture for name, picture in found.items() if picture is not None}


class _Steps:
    """Tells before every call of the network how far the work is, and ends it if it was cancelled."""

    def __init__(self, tell: Callable[[Event], None], stop: Stop, total: int) -> None:
        self._tell, self._stop, self._total = tell, stop, total
        self._done = 0

    def __call__(self) -> None:
        if self._stop.is_set():
            found = f"cancelled after {self._done} of {self._total} steps"
            raise Interrupted("request", found, "a finished one", "ask again")
        self._done += 1
        self._tell(Progress(self._done, self._total))


def new_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(_MAX_NEW_SEED)


def check_guide(guidance: GuidanceParams, guides: frozenset[str]) -> None:
    """ConfigError: the guidance names a folder that is not one of `guides`."""
    if isinstance(guidance, AutoguidanceParams | ClassifierParams) and guidance.directory not in guides:
        fix = "take guidance classifier_free" if not guides else f"take one of {', '.join(sorted(guides))}"
        raise ConfigError("guidance.directory", "a folder that this page does not use", "one that it offers", fix)


def _settings(
    pipeline: "Pipeline", name: str | None, settings: Mapping[str, Any]
) -> tuple[TaskParams | None, DrawingParams]:
    if name is None:
        return None, pipeline.drawing.changed(settings)
    task: TaskParams = getattr(pipeline.tasks, name)
    own = {key: value for key, value in settings.items() if key in type(task).model_fields}
    others = {key: value for key, value in settings.items() if key not in own}
    return task.changed(own), task.changes(pipeline.drawing).changed(others)


def _pngs(pipeline: "Pipeline", request: Request) -> Iterator[bytes]:
    texts = [request.prompt] * request.num_images
    if request.task is None:
        return pipeline.pngs(texts, **request.settings)
    return pipeline.task_pngs(request.task, texts, request.pictures, **request.settings)


def _tell_unknown(pipeline: "Pipeline", texts: Sequence[str], tell: Callable[[Event], None]) -> None:
    unknown = pipeline.unknown_words(texts)
    if unknown:
        tell(Note(f"No training caption has: {', '.join(unknown[:_NUM_HINTS])}."))


@contextmanager
def _warnings_to(tell: Callable[[Event], None]) -> Generator[None]:
    """What the library warns of becomes notes."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: tell(Note(f"{message}."))
        yield
