"""Comparison of the reduction with recorded outputs of the published one, one function a kind of case.

A case is what the JSON says of it and its tensors, so that a case from anywhere can be checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from g2tr_core.errors import SettingsError
from g2tr_core.reduction import Reduced, Reduction, pool_latent, reduce
from g2tr_core.reduction.merging import merge_tokens, nearest_kept

Case = dict[str, Any]
Tensors = dict[str, Tensor]

ATOL = 3e-5  # fp32, MANIFEST.md
BF16_STEP = 2**-8  # the published code rounds cosines to bf16


def reduction_cases(folder: Path) -> Iterator[tuple[Case, Tensors]]:
    """The BAGEL cases of a golden folder; none where it does not hold both files."""
    listing, tensors = (folder / "bagel" / f"reduction_cases.{kind}" for kind in ("json", "safetensors"))
    if listing.exists() and tensors.exists():
        recorded = load_file(tensors)
        for case in json.loads(listing.read_text(encoding="utf-8"))["cases"]:
            yield case, _under(f"case{case['case']:03d}.", recorded)


def internvlu_cases(folder: Path) -> Iterator[tuple[Case, Tensors]]:
    """The InternVL-U cases of a golden folder that have grids; none where it does not hold both files."""
    listing, tensors = (folder / "internvlu" / "unit" / f"token_reduction.{kind}" for kind in ("json", "safetensors"))
    if listing.exists() and tensors.exists():
        recorded = load_file(tensors)
        for case in json.loads(listing.read_text(encoding="utf-8")):
            if "vit_grids" in case:
                yield case, _under(f"{case['case']}.", recorded)


def check_reduction_case(case: Case, tensors: Tensors) -> None:
    """Compares pooling, scores, kept indices and merged tokens with a BAGEL case."""
    if case["scaling"] == 0:
        with pytest.raises(SettingsError, match="merge_scaling"):
            Reduction(merge_scaling=case["scaling"])
    settings = Reduction(
        keep_ratio=case["keep_ratio"],
        min_tokens=case["min_keep_tokens"],
        latent_pool=case["pool"],
        merge_scaling=case["scaling"] or 1.0,
    )
    _check_anchors(case, tensors)
    pictures = _reduce_each(case, tensors["vit_features"], tensors["anchors"], case["anchor_grids"], settings)
    starts = tensors["cu_seqlens"].tolist()
    assert starts == [0, *accumulate(case["n_tokens"])]
    assert [len(picture.keep) for picture in pictures] == case["keep_n"]
    assert [0, *accumulate(case["keep_n"])] == tensors["new_cu_seqlens"].tolist()

    scores = torch.cat([picture.scores for picture in pictures])  # [sum N]
    keep = torch.cat([picture.keep + start for picture, start in zip(pictures, starts, strict=False)])  # [sum K]
    if case["dtype"] == "bfloat16":
        _check_bf16(case, tensors, scores, keep)
        return
    torch.testing.assert_close(scores, tensors["scores"], atol=ATOL, rtol=0)
    if case["tie"]:
        _check_same_scores(scores, keep, tensors["keep_indices"], ATOL)
        return
    assert keep.tolist() == tensors["keep_indices"].tolist()
    assert tensors["position_ids"][keep].tolist() == tensors["kept_position_ids"].tolist()
    _check_merged(case, tensors, pictures)


def check_internvlu_case(case: Case, tensors: Tensors) -> None:
    """Compares scores, kept indices and merged tokens with an InternVL-U case."""
    settings = Reduction(keep_ratio=case["keep_ratio"], min_tokens=case["min_keep"])
    pictures = _reduce_each(case, tensors["vit"], tensors["anchor"], case["latent_grids"], settings)
    starts = [0, *accumulate(math.prod(grid) for grid in case["vit_grids"])]
    keep = torch.cat([picture.keep + start for picture, start in zip(pictures, starts, strict=False)])  # [sum K]
    scores = torch.cat([picture.scores for picture in pictures])  # [sum N]
    torch.testing.assert_close(scores, tensors["scores"], atol=ATOL, rtol=0)
    assert keep.tolist() == tensors["keep"].tolist()
    for name, published in _under("merged.scaling", tensors).items():
        merged = merge_tokens(tensors["vit"], keep, nearest_kept(tensors["vit"], keep), float(name))
        torch.testing.assert_close(merged, published, atol=ATOL, rtol=0)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _rows(tensor: Tensor, grids: list[list[int]]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    ends = [0, *accumulate(rows * columns for rows, columns in grids)]
    for (start, end), (rows, columns) in zip(pairwise(ends), grids, strict=True):
        yield tensor[start:end], (rows, columns)


def _reduce_each(
    case: Case, features: Tensor, anchors: Tensor, anchor_grids: list[list[int]], settings: Reduction
) -> list[Reduced]:
    pictures = zip(_rows(features, case["vit_grids"]), _rows(anchors, anchor_grids), strict=True)
    return [reduce(*picture, *its_anchors, settings) for picture, its_anchors in pictures]


def _check_anchors(case: Case, tensors: Tensors) -> None:
    pooled, grids = [], []
    for patches, grid in _rows(tensors["latent_grid"], case["latent_grids"]):
        means, anchor_grid = pool_latent(patches, grid, case["pool"])
        pooled.append(means)
        grids.append(list(anchor_grid))
    assert grids == case["anchor_grids"]
    atol = ATOL if case["dtype"] == "float32" else 1e-2
    torch.testing.assert_close(torch.cat(pooled), tensors["pooled_latent"], atol=atol, rtol=0)
    anchors = F.linear(torch.cat(pooled), tensors["vae2llm_weight"], tensors["vae2llm_bias"])
    torch.testing.assert_close(anchors.to(tensors["anchors"]), tensors["anchors"], atol=atol, rtol=atol)


def _check_merged(case: Case, tensors: Tensors, pictures: list[Reduced]) -> None:
    features, keep = tensors["vit_features"], tensors["keep_indices"]
    # As published, tokens leave their picture and scaling 0 divides by 0: our functions can do so, `reduce` does not.
    packed = merge_tokens(features, keep, nearest_kept(features, keep), case["scaling"])
    torch.testing.assert_close(packed, tensors["merged"], atol=ATOL, rtol=0, equal_nan=case["has_nan"])
    if case["has_nan"]:
        return
    merged = torch.cat([picture.features for picture in pictures])  # [sum K, C]
    alone = tensors["merged"] if len(pictures) == 1 else tensors["derived_merged_per_image"]
    torch.testing.assert_close(merged, alone, atol=ATOL, rtol=0)


def _check_same_scores(scores: Tensor, ours: Tensor, published: Tensor, atol: float) -> None:
    assert len(ours) == len(published)
    torch.testing.assert_close(scores[ours].sort().values, scores[published].sort().values, atol=atol, rtol=0)


def _check_bf16(case: Case, tensors: Tensors, scores: Tensor, keep: Tensor) -> None:
    """The published code computes in bf16, ours in fp32: near ties within a bf16 step may fall either way."""
    published = tensors["keep_indices"]
    torch.testing.assert_close(scores, tensors["scores"].float(), atol=BF16_STEP, rtol=1e-2)
    _check_same_scores(scores, keep, published, 2 * BF16_STEP)
    assert len(set(keep.tolist()) ^ set(published.tolist())) <= len(keep) // 8

    features = tensors["vit_features"]
    merged = merge_tokens(features, published, nearest_kept(features, published), case["scaling"])
    assert merged.dtype == tensors["merged"].dtype
    close = torch.isclose(merged.float(), tensors["merged"].float(), rtol=1e-2, atol=1e-2).all(dim=1)  # [K]
    strays = 0 if case["margins"]["merge_argmax_gap_min"] > BF16_STEP / 2 else len(published) // 8
    assert (~close).sum() <= 2 * strays
