"""Estimates for memory managers hold what a run takes; readings can be moved and say how large they are."""

from __future__ import annotations

import pytest
import torch

from g2tr_core.embedded import PHOTO
from g2tr_core.generation.settings import Decoding, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm.bagel.config import BagelConfig
from g2tr_core.umm.bagel.memory_estimate import BagelMemoryEstimate
from g2tr_core.umm.bagel.model import Bagel

HALF = Reduction(keep_ratio=0.5, min_tokens=1)
SIZE = (600, 400)  # of PHOTO
KV_BYTES = 57344  # of a token of BAGEL-7B-MoT


def test_rows_are_those_that_a_picture_takes(tiny: Bagel) -> None:
    prepared = tiny.encode(PHOTO).pictures[0].prepared
    rows, columns = prepared.latent_grid
    assert tiny.memory_estimate.rows(SIZE) == (rows * columns, len(prepared.vit_patches))


@pytest.mark.parametrize("purpose", ["answer", "edit"])
def test_the_cache_is_not_larger_than_estimated(tiny: Bagel, purpose) -> None:
    reading = tiny.read([PHOTO, PHOTO], purpose=purpose)
    assert reading.conversations[purpose, False].full.cache.nbytes <= tiny.memory_estimate.kept([SIZE, SIZE], purpose)


def test_figures_at_full_size() -> None:
    """A 1024x1024 edit with three branches in bf16: 1.6 GB in the decoder, 4.6 GB in the autoencoder."""
    full = BagelMemoryEstimate(KV_BYTES, 2, 2, BagelConfig())
    assert full.rows((1024, 1024)) == (4096, 4900)
    joined = 4096 * KV_BYTES // 28  # a layer's rows of the block
    assert full.step([], (1024, 1024), Sampling()) - joined == pytest.approx(1.6e9, rel=0.05)
    assert full.step([], (1024, 1024), Sampling(batch_guidance=False)) - joined == pytest.approx(0.55e9, rel=0.05)
    assert full.imagining((1024, 1024), Sampling(), None) == pytest.approx(4.7e9, rel=0.02)
    thought = full.imagining((1024, 1024), Sampling(), Decoding(max_tokens=1000))
    assert thought - full.imagining((1024, 1024), Sampling(), None) == 1000 * KV_BYTES


def test_a_reading_counts_what_it_holds(tiny: Bagel) -> None:
    reading = tiny.read(PHOTO, HALF)
    cache = reading.conversations["answer", False].full.cache
    before = reading.nbytes
    assert before > cache.nbytes
    tiny.answer(reading, "What?", decoding=Decoding(max_tokens=2), think=True)
    assert reading.nbytes > before + cache.nbytes // 2, "the contexts for thinking count too"


def test_a_reading_can_be_moved(tiny: Bagel) -> None:
    reading = tiny.read(PHOTO, HALF, purpose="edit")
    moved = reading.encoding.to(torch.device("meta"))
    assert moved.pictures[0].features.device.type == moved.pictures[0].latent.device.type == "meta"
    assert reading.encoding.pictures[0].features.device.type == "cpu", "the other one stays"
    reading.to(torch.device("meta"))
    conversation = reading.conversations["edit", False]
    held = [conversation.full.cache, conversation.texts.cache, reading.reduced[0].keep, reading.reduced[0].features]
    assert {thing.device.type for thing in [*held, reading.encoding.pictures[0].features]} == {"meta"}
