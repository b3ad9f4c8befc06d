"""Rules on what the corpus holds: what can be learned from it, and what its images can be measured with."""

from collections.abc import Iterator
from typing import get_args

from ldm.corpora.params import CorpusParams, ShapesParams
from ldm.oracles.params import ClassifierOracleParams
from ldm.text.training.params import TrainedClipParams
from ldm.tools.check.sections import Finding, Params


def kinds(params: Params) -> Iterator[Finding]:
    """What only some corpora have."""
    corpus, source = params.prepare.corpus, params.train_clip.source
    if isinstance(source, TrainedClipParams) and source.twins_together and not corpus.has_twins:
        yield (
            "train_clip.source.twins_together",
            f"found true; expected false: the corpus {corpus.kind} has no twins",
            "set it to false",
        )
    if isinstance(corpus, ShapesParams) and isinstance(source, TrainedClipParams):
        size, num_train = source.training.batch_size, corpus.num_train
        if size > num_train:
            found = f"found {size}; expected at most {num_train}, the images of prepare.corpus.num_train"
            yield "train_clip.source.training.batch_size", found, "lower it, or raise prepare.corpus.num_train"
    if not corpus.val_repeats_train and params.sample.seen_split == "val":
        reason = f"the validation split of {corpus.kind} shows things that training never showed"
        yield "sample.seen_split", f"found val; expected train: {reason}", "set it to train"


_CORPORA = {get_args(corpus.model_fields["kind"].annotation)[0] for corpus in get_args(CorpusParams)}


def instruments(params: Params) -> Iterator[Finding]:
    """An oracle or a feature space that is named after a corpus can only be used with that corpus."""
    corpus = params.prepare.corpus
    others = _CORPORA - {corpus.kind}
    accuracy = params.evaluate.accuracy
    if accuracy.kind in others:
        yield (
            "evaluate.accuracy.kind",
            f"found {accuracy.kind}; expected retrieval: this oracle cannot check the captions of the corpus "
            f"{corpus.kind}",
            "write accuracy: {kind: retrieval, num_prompts: 200, k: 10, num_images: 10000}",
        )
    if isinstance(accuracy, ClassifierOracleParams) and not corpus.has_classes:
        found = f"found classifier; expected retrieval or none: captions of the corpus {corpus.kind} claim no classes"
        yield (
            "evaluate.accuracy.kind",
            found,
            "write accuracy: {kind: retrieval, num_prompts: 200, k: 10, num_images: 10000}",
        )
    for i, space in enumerate(params.evaluate.feature_spaces):
        if space.kind in others:
            yield (
                f"evaluate.feature_spaces.{i}.kind",
                f"found {space.kind}; expected a space for any images: this one is for those of the corpus "
                f"{space.kind} only, not of {corpus.kind}",
                "remove it",
            )


def oracles(params: Params) -> Iterator[Finding]:
    """An oracle must be able to read what is drawn, and one that learns must not have learned from what it reads."""
    accuracy, drawn = params.evaluate.accuracy, params.sample.drawing.size_px
    side = params.prepare.image_size_px
    kinds = {accuracy.kind, *(space.kind for space in params.evaluate.feature_spaces)}
    learns = isinstance(accuracy, ClassifierOracleParams)
    found = f"found {drawn and list(drawn)}; expected "
    if drawn is not None and "shapes" in kinds and drawn[0] != drawn[1]:
        found += "a square: the oracle and the feature space of the corpus shapes read no other images"
        yield "sample.drawing.size_px", found, "set it to null"
    if drawn is not None and learns and drawn != (side, side):
        found += f"null: the classifier of evaluate.accuracy reads images of {side} x {side} pixels"
        yield "sample.drawing.size_px", found, "set it to null"
    if learns and params.sample.seen_split == "train":
        found = "found train; expected val: the classifier of evaluate.accuracy learns from training images, and its "
        found += "score on real images is to be one of images that it has not seen"
        yield "sample.seen_split", found, "set it to val"


def own_clip(params: Params) -> Iterator[Finding]:
    """Without a CLIP, what needs its features cannot be measured."""
    if params.train_clip.source.kind != "none":
        return
    if params.evaluate.accuracy.kind == "retrieval":
        found = "found retrieval; expected none or an oracle: train_clip.source is none, and retrieval compares images "
        found += "by the features of a CLIP"
        yield "evaluate.accuracy.kind", found, "write accuracy: {kind: none}, or bring a CLIP for the evaluation"
    if not params.evaluate.feature_spaces:
        found = "found none; expected at least one: train_clip.source is none, so there is no CLIP to compare images by"
        yield "evaluate.feature_spaces", found, "name one, or bring a CLIP for the evaluation"


def captions(params: Params) -> Iterator[Finding]:
    """Where every caption is empty, nothing can be learned from captions, asked for or checked."""
    if params.prepare.captions != "none":
        return
    reason = "prepare.captions is none, so every caption is empty"
    source, dropout = params.train_clip.source.kind, params.train_unet.diffusion.caption_dropout
    if source == "train":
        found = f"found train; expected untrained or a pretrained CLIP: {reason}"
        yield "train_clip.source.kind", found, "write source: {kind: untrained, network: {...}, seed: 0}"
    if dropout:
        found = f"found {dropout:g}; expected 0: {reason} already"
        yield "train_unet.diffusion.caption_dropout", found, "set it to 0"
    if params.evaluate.accuracy.kind != "none":
        found = f"found {params.evaluate.accuracy.kind}; expected none: {reason}"
        yield "evaluate.accuracy.kind", found, "write accuracy: {kind: none}"
