"""A CLIP that others trained, to compare images with: nothing here is read by a training."""

import warnings
from typing import Any

from ldm.core.errors import ConfigError, IntegrityError
from ldm.exchange import files
from ldm.text.model import layout
from ldm.text.model.clip import Clip, Preprocess


def build(architecture: str, weights: files.Source, quick_gelu: bool) -> Clip:
    """The CLIP of this architecture of open_clip with these weights, frozen. Its images are prepared as OpenAI's, since
    weights do not say how.

    Warns if open_clip knows weights of the architecture whose images are prepared otherwise. ConfigError: open_clip has
    no such architecture, or it has another activation, or a tokenizer of its own. IntegrityError: the weights are not
    its own.
    """
    import open_clip

    cfg = open_clip.get_model_config(architecture)
    if cfg is None:
        fix = "write one of open_clip.list_models(), such as ViT-L-14-336"
        raise ConfigError("evaluate.feature_spaces", f"architecture {architecture}", "one that open_clip has", fix)
    if cfg.get("quick_gelu") and not quick_gelu:
        found, expected = "quick_gelu: false", f"true, since {architecture} is with QuickGELU"
        raise ConfigError("evaluate.feature_spaces", found, expected, "set quick_gelu: true, or name another")
    if layout.has_other_tokenizer(cfg):
        found, expected = f"architecture {architecture}", "one whose tokenizer is open_clip's own"
        raise ConfigError("evaluate.feature_spaces", found, expected, "name one of those, such as ViT-L-14-336")
    model = open_clip.create_model(architecture, force_quick_gelu=quick_gelu)
    try:
        model.load_state_dict(weights.tensors)
    except RuntimeError as error:
        found, expected = layout.why_not_loaded(error), f"weights of {architecture} as open_clip saves them"
        fix = "name the architecture that they belong to, or bring open_clip_model.safetensors"
        raise IntegrityError(str(weights.path), found, expected, fix) from None
    visual: Any = model.visual
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    preprocess = Preprocess(size, visual.image_mean, visual.image_std, "bicubic", "shortest")
    if others := layout.otherwise_prepared(architecture, quick_gelu, preprocess.mean, preprocess.std):
        fix = "if they are one of these, distances to images are measured wrongly: name another CLIP"
        warnings.warn(f"{weights.path} does not say how its images are prepared: {others}; {fix}", stacklevel=2)
    return Clip(model, cfg, preprocess, None).eval().requires_grad_(False)
