"""Where the parts of a model are, and how it draws: in a repository, or in a model folder.

Importing this module imports no torch, so that a wrong setting is refused at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ldm.core import config
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import MachineParams, PathsParams
from ldm.sampling.params import DrawingParams, SampleParams
from ldm.tools.tasks.params import TasksParams

if TYPE_CHECKING:
    from ldm.core.artifact import Kind, Passport

PASSPORT = "passport.json"
UNET, AUTOENCODER, CLIP, TEXT = "unet", "autoencoder", "clip", "text"
"""Folders of a model folder."""
_ANY_MACHINE = MachineParams(
    threads=None,
    num_workers=0,
    attention="auto",
    compile=None,
    channels_last=False,
    num_batches_ahead=0,
    background_saves=False,
    deterministic=True,
    keep_finished_states=False,
    num_kept_runs=0,
    max_run_age_days=None,
    trackers=[],
)
"""A model folder says nothing about the machine that it is used on."""


def kind() -> "Kind":
    """The kind of artefact that a model folder is."""
    from ldm.core import artifact

    return artifact.Kind("model")


def _way_to(model: Path) -> str:
    """How to draw in a repository without the results of its trainings."""
    if (model / PASSPORT).is_file():
        return f"add --model {model}, or `dvc pull` for the rest"
    return f"`dvc pull {model}` brings one that was shared, `dvc checkout` what is in the cache; `make demo` trains one"


@dataclass(frozen=True)
class Parts:
    """The folders of a model's parts, and the settings that a call does not name."""

    root: Path
    """Folders of models that guide are below it."""
    unet: Path
    autoencoder: Path
    clip: Path
    text: Path
    """The artefact of `embed_text`, in a model folder without captions."""
    drawing: DrawingParams
    batch_size: int
    tasks: TasksParams
    machine: MachineParams
    unet_sha256: str | None
    """The UNet that it must be; None = any that fits the others."""
    has_captions: bool
    """Whether stored captions are there."""

    @classmethod
    def of(cls, root: Path) -> Self:
        """Those of a repository, found through its paths.yaml, or of a model folder.

        Raises:
            ConfigError: it is neither, or paths.yaml or params.yaml is wrong.
            IntegrityError: the passport of the model folder is damaged.
        """
        if (root / PASSPORT).is_file():
            return cls._of_folder(root)
        if not (root / config.PARAMS).is_file():
            found = f"no {config.PARAMS} and no {PASSPORT}" if root.is_dir() else "no such folder"
            fix = "run from the repository root, or name a model folder (--model DIR): `dvc pull data/model` brings one"
            raise ConfigError(str(root), found, "a repository or a model folder", fix)
        return cls._of_repository(root)

    @classmethod
    def of_artefacts(
        cls,
        unet: Path,
        autoencoder: Path,
        clip: Path,
        embeddings: Path,
        sample: SampleParams,
        tasks: TasksParams,
        machine: MachineParams,
        root: Path = Path(),
    ) -> Self:
        """Those that stages wrote into these folders."""
        return cls(
            root=root,
            unet=unet,
            autoencoder=autoencoder,
            clip=clip,
            text=embeddings,
            drawing=sample.drawing,
            batch_size=sample.batch_size,
            tasks=tasks,
            machine=machine,
            unet_sha256=None,
            has_captions=True,
        )

    def require(self) -> None:
        """IntegrityError: parts of a repository were not made or fetched yet."""
        missing = [part for part in (self.unet, self.text) if not (part / PASSPORT).is_file()]
        if missing and self.has_captions:
            model = self.root / config.read(PathsParams, "paths", self.root / config.PATHS).model
            raise IntegrityError(str(missing[0]), f"no {PASSPORT}", "a trained model", _way_to(model))

    def check(self, unet: "Passport") -> None:
        """IntegrityError: the UNet is another one than the model folder says. It names the other parts."""
        if self.unet_sha256 not in (None, unet.content_sha256):
            fix = "take the whole folder as stage `model` wrote it"
            raise IntegrityError(str(self.unet), f"SHA-256 {unet.content_sha256}", f"{self.unet_sha256}", fix)

    @classmethod
    def _of_repository(cls, root: Path) -> Self:
        document, paths = config.Document(root / config.PARAMS), config.read(PathsParams, "paths", root / config.PATHS)
        return cls.of_artefacts(
            root / paths.unet,
            root / paths.autoencoder,
            root / paths.clip,
            root / paths.embeddings,
            document.read(SampleParams, "sample"),
            document.read(TasksParams, "tasks"),
            document.read(MachineParams, "machine"),
            root,
        )

    @classmethod
    def _of_folder(cls, root: Path) -> Self:
        from ldm.core import artifact

        passport = artifact.read_passport(root, kind())
        with artifact.fitting(root):
            values = passport.config
            return cls(
                root=root,
                unet=root / UNET,
                autoencoder=root / AUTOENCODER,
                clip=root / CLIP,
                text=root / TEXT,
                drawing=DrawingParams.model_validate(values["drawing"]),
                batch_size=values["batch_size"],
                tasks=TasksParams.model_validate(values["tasks"]),
                machine=_ANY_MACHINE,
                unet_sha256=passport.inputs["unet"],
                has_captions=False,
            )
