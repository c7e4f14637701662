"""The picture of a reduction tells the truth: what is bright was kept, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from g2tr_core.errors import SettingsError
from g2tr_core.figures import theme, token_map
from g2tr_core.figures.token_map import LARGEST_CELL, LONG_SIDE, contact_sheet, draw, heat, kept_mask
from g2tr_core.umm.values import TokenView

PATCH = 14


def view(rows: int, columns: int, ratio: float = 0.5, *, shade: int | None = None, scored: bool = True) -> TokenView:
    """A picture of noise (or of one grey) whose tokens were kept and merged at random."""
    random = np.random.default_rng(rows * columns)
    size = (rows * PATCH, columns * PATCH, 3)
    pixels = random.integers(60, 256, size) if shade is None else np.full(size, shade)
    tokens = rows * columns
    keep = torch.from_numpy(np.sort(random.permutation(tokens)[: max(1, round(tokens * ratio))]))
    assignment = keep[torch.from_numpy(random.integers(0, len(keep), tokens))]
    assignment[keep] = keep
    scores = torch.from_numpy(random.uniform(-1, 1, tokens)).float()
    return TokenView(
        Image.fromarray(pixels.astype(np.uint8)), (rows, columns), keep, assignment, scores if scored else None
    )


def cells(picture: Image.Image, grid: tuple[int, int], cell: int) -> np.ndarray:
    """The cells of a map without its caption: [N, cell, cell, 3]."""
    rows, columns = grid
    left = (picture.width - columns * cell) // 2
    pixels = np.asarray(picture)[: rows * cell, left : left + columns * cell]
    return pixels.reshape(rows, cell, columns, cell, 3).swapaxes(1, 2).reshape(rows * columns, cell, cell, 3)


def is_kept(shown: TokenView) -> np.ndarray:
    return np.isin(np.arange(len(shown.assignment)), shown.keep.numpy())


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 2), (9, 13), (37, 53)])
def test_kept_cells_show_the_photo_and_dropped_ones_are_dimmed(grid: tuple[int, int]) -> None:
    shown = view(*grid, shade=200)
    inside = cells(draw(shown, scale=20), grid, 20)[:, 4:-4, 4:-4].astype(int)
    kept = is_kept(shown)
    assert (inside[kept] == 200).all()
    assert (inside[~kept].mean(axis=(1, 2, 3)) < 140).all()


def test_a_frame_has_the_hue_of_what_merged_into_it() -> None:
    shown = view(6, 8, shade=200)
    drawn = cells(draw(shown, scale=24), shown.grid, 24).astype(float)
    took = np.bincount(shown.assignment.numpy(), minlength=48) > 1
    frames, insides = drawn[:, 0, 4:-4].mean(axis=1), drawn[:, 6:-6, 6:-6].mean(axis=(1, 2))  # [N, 3] each
    for token in np.flatnonzero(~is_kept(shown)):
        owner = int(shown.assignment[token])
        assert took[owner]
        dimmed = frames[owner] * (0.2 + 0.5 * 200 / 255)
        np.testing.assert_allclose(insides[token], dimmed, atol=2)
    for token in np.flatnonzero(is_kept(shown) & ~took):
        assert (drawn[token, 4:-4, 4:-4] == 200).all(), "what took nothing in has no frame"


def test_all_kept_is_the_photo_itself() -> None:
    shown = view(6, 9, ratio=1.0, scored=False)
    photo = shown.image.resize((9 * 20, 6 * 20), Image.Resampling.LANCZOS)
    assert (cells(draw(shown, scale=20), shown.grid, 20) == cells(photo, shown.grid, 20)).all()


def test_the_same_view_gives_the_same_pixels() -> None:
    assert draw(view(9, 13)).tobytes() == draw(view(9, 13)).tobytes()
    assert heat(view(9, 13)).tobytes() == heat(view(9, 13)).tobytes()


@pytest.mark.parametrize("grid", [(8, 8), (70, 70), (5, 2), (37, 53)])
def test_the_mask_and_the_map_agree_with_what_was_kept(grid: tuple[int, int]) -> None:
    """At the photo's own size a kept token's inside is the photo, pixel for pixel, where the mask is 1."""
    shown = view(*grid)
    drawn, photo = (np.asarray(picture) for picture in (token_map.cells(shown, PATCH), shown.image))
    same = cells(Image.fromarray((drawn == photo).all(-1).astype(np.uint8) * 255).convert("RGB"), grid, PATCH)
    by_mask = kept_mask(shown).numpy().reshape(grid[0], PATCH, grid[1], PATCH).mean((1, 3)).reshape(-1)  # [N]
    assert np.array_equal(by_mask, is_kept(shown).astype(np.float32))
    inside = same[:, 2:-2, 2:-2, 0] == 255  # within frames and seams
    assert np.array_equal(inside.all((1, 2)), by_mask == 1)


def test_groups_are_told_apart_by_darker_lines() -> None:
    """Two tokens that merged into different ones have a line between them, two of one group have none."""
    photo = Image.new("RGB", (4 * PATCH, PATCH), (200, 200, 200))
    keep, assignment = torch.tensor([0, 3]), torch.tensor([0, 0, 3, 3])
    row = np.asarray(token_map.cells(TokenView(photo, (1, 4), keep, assignment, None), 20)).astype(int)[10].sum(-1)
    assert row[40] < 0.8 * row[50], "between the groups"
    assert row[19] > row[20] and row[25] == row[35]
    whole = np.asarray(token_map.cells(TokenView(photo, (1, 4), torch.tensor([0]), torch.zeros(4).long(), None), 20))
    assert (whole[10, 21:] == whole[10, 21]).all(), "one group"


@pytest.mark.parametrize("grid", [(8, 8), (70, 70), (3, 30), (1, 1)])
def test_captions_can_be_read_in_a_node(grid: tuple[int, int]) -> None:
    """The letters below a map are as high as in a drawing of a node's width."""
    shown = view(*grid)
    pixels = np.asarray(draw(shown))
    caption = pixels[grid[0] * token_map._cell_side(grid, None) :]
    letters = (caption > 200).any((1, 2))  # [rows of pixels]: the bright line alone
    assert letters.sum() * theme.NODE_WIDTH / max(pixels.shape[1], theme.NODE_WIDTH) >= 0.7 * theme.BODY


def test_small_grids_are_enlarged_and_large_ones_limited() -> None:
    assert draw(view(2, 3)).height > 2 * LARGEST_CELL
    assert draw(view(8, 8)).width == 8 * LARGEST_CELL
    assert LONG_SIDE * 0.9 < draw(view(37, 53)).width <= LONG_SIDE
    assert draw(view(3, 300)).width <= LONG_SIDE
    assert draw(view(6, 9), scale=50).width == 450


@pytest.mark.parametrize("scale", [0, -3, 1.5, True, 1000])
def test_a_bad_scale_is_refused(scale: object) -> None:
    with pytest.raises(SettingsError, match="scale"):
        draw(view(6, 9), scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("drawing", [draw, heat])
def test_4900_tokens_take_less_than_a_fifth_of_a_second(drawing: Callable[[TokenView], Image.Image]) -> None:
    shown, seconds = view(70, 70), []
    for _ in range(3):
        start = time.process_time()
        drawing(shown)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2


def test_the_mask_is_what_was_kept() -> None:
    shown = view(5, 7)
    mask = kept_mask(shown)
    assert mask.shape == (5 * PATCH, 7 * PATCH)
    assert mask.dtype == torch.float32
    by_cell = mask.view(5, PATCH, 7, PATCH).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # [N, pixels]
    assert torch.equal(by_cell, torch.from_numpy(is_kept(shown)).float()[:, None].expand(-1, PATCH * PATCH))
    assert kept_mask(view(5, 7, ratio=1.0)).min() == 1.0


def test_heat_grows_lighter_with_the_score() -> None:
    shown = view(6, 9, shade=128)
    luma = cells(heat(shown, scale=20), shown.grid, 20).mean(axis=(1, 2)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma[shown.scores.argsort().numpy()]) > -0.5).all()


def test_heat_of_scores_that_are_equal_or_no_numbers() -> None:
    shown = view(2, 3)
    shown.scores[:] = 0.5
    heat(shown)
    shown.scores[0] = torch.nan
    assert (cells(heat(shown, scale=20), shown.grid, 20)[0] == 0).all()
    shown.scores[:] = torch.nan
    heat(shown)


@pytest.mark.parametrize(
    ("ratio", "why", "fix"),
    [
        (1.0, "all tokens were kept", "a keep_ratio below 1 and one of the methods g2tr, guided-diverse"),
        (
            0.5,
            "the method does not compare tokens with the latent",
            "Read with one of the methods g2tr, guided-diverse",
        ),
    ],
)
def test_heat_without_scores_says_why_and_what_to_do(ratio: float, why: str, fix: str) -> None:
    with pytest.raises(SettingsError, match=f"^scores: there are none: {why}.*{fix}"):
        heat(view(6, 9, ratio, scored=False))


def test_a_contact_sheet_holds_every_picture() -> None:
    red, blue = Image.new("RGB", (40, 30), (255, 0, 0)), Image.new("RGB", (90, 20), (0, 0, 255))
    sheet = contact_sheet([red, blue], ["a.png", "b.png"])
    colours = [colour for _, colour in sheet.getcolors(sheet.width * sheet.height)]
    assert {(255, 0, 0), (0, 0, 255)} <= set(colours)
    assert sheet.width >= 90
    assert sheet.height > 50
