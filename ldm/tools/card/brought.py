"""What of a model others have trained, as the passports of its parts say."""

from collections.abc import Mapping
from typing import Any

from ldm.core.artifact import Passport


def weights(parts: Mapping[str, Passport]) -> dict[str, str]:
    """Part that has others' weights, or was trained further from them -> what is known of these, in Markdown."""
    found: dict[str, str] = {}
    if (base := parts["unet"].inputs.get("init_from")) is not None:
        found["UNet"] = f"trained further from weights with SHA-256 `{base}`"
    if files := parts["autoencoder"].facts.get("source"):
        found["autoencoder"] = f"from {', '.join(f'`{name}`' for name in files)}"
    if (name := _name(_source(parts["clip"]))) is not None:
        found["text encoder"] = f"`{name}`"
    return found


def text_encoder(encoder: Passport) -> str:
    """The text encoder in words."""
    source = _source(encoder)
    match source["kind"]:
        case "train":
            return "a CLIP trained on the same captions"
        case "untrained":
            return "a CLIP with random weights"
        case "transformers":
            return f"a text encoder that was brought (`{_name(source)}`)"
        case _:
            return f"a CLIP that was brought (`{_name(source)}`)"


def files(parts: Mapping[str, Passport]) -> list[tuple[str, str]]:
    """Name and SHA-256 of the files that others' weights were read from, as far as passports have them."""
    autoencoder, encoder = parts["autoencoder"].facts.get("source", {}), parts["clip"].facts.get("source_sha256", {})
    named = {"autoencoder": autoencoder, "text encoder": encoder}
    return [(f"{part}: {name}", sha256) for part, each in named.items() for name, sha256 in each.items()]


def _source(encoder: Passport) -> dict[str, Any]:
    """The params of its source; older CLIPs have none, and are trained."""
    return encoder.facts.get("source", {"kind": "train"})


def _name(source: Mapping[str, Any]) -> str | None:
    """What its owner calls a brought text encoder; None if it was not brought."""
    match source["kind"]:
        case "train" | "untrained":
            return None
        case "open_clip":
            return f"{source['architecture']}, {source['tag']}"
        case _:
            return source["path"]
