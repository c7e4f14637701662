"""Pixels, sizes and prompts equal what the published processor made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from g2tr_core.errors import SettingsError
from g2tr_core.nn.patches import patchify, unpatchify
from g2tr_core.umm.internvlu.config import AreaRule, InternVLUConfig
from g2tr_core.umm.internvlu.preprocess import fit_size, latent_grid_for, prepare
from g2tr_core.umm.internvlu.prompts import NOTHING, SYSTEM, check_special, no_text_turn, render, user_turn
from tests.goldens import golden_folders
from tests.umm.internvlu.conftest import model_of
from tests.umm.internvlu.golden_cases import RESIZED, RESIZED_APART

PROCESSED = [root for root in golden_folders() if (root / "internvlu" / "processor_goldens").is_dir()]
CASES = [
    (root, name)
    for root in PROCESSED
    for name in json.loads((root / "internvlu" / "processor_goldens" / "index.json").read_text())
    if (root / "internvlu" / "processor_goldens" / f"{name}.safetensors").is_file()
]
SIZES = [root / "internvlu" / "unit" / "resize_rules.json" for root in golden_folders()]
SIZES = [path for path in SIZES if path.is_file()]
RULES = {"smart_resize_released_config": AreaRule(), "smart_resize_tiny_config": AreaRule(4096, 16384, 128, 16)}


@pytest.mark.parametrize(("root", "name"), CASES, ids=lambda value: getattr(value, "name", value))
def test_prompts(root: Path, name: str) -> None:
    """Every row of every recorded prompt: the string, and its tokens."""
    folder, model = root / "internvlu" / "processor_goldens", model_of(root)
    case, golden = json.loads((folder / "index.json").read_text())[name], load_file(folder / f"{name}.safetensors")
    prompts = case["prompt"] if isinstance(case["prompt"], list) else [case["prompt"]]
    images = case["image"] if isinstance(case["image"], list) else [case["image"]] * len(prompts)
    counts = [0 if entry is None else len(entry) if isinstance(entry, list) else 1 for entry in images]
    task = "answer" if case["mode"] == "text" else "edit" if any(counts) else "imagine"
    turns = [(user_turn(prompt, count), count) for prompt, count in zip(prompts, counts, strict=True)]
    if case["mode"] != "text":
        turns += [(no_text_turn(count), count) for count in counts] + [(NOTHING, 0) for _ in counts]
    system, tokens = case["system_prompt"] or SYSTEM[task], model.config.visual_tokens
    rendered = [
        render(system, turn, [tokens] * count, opens_image=case["mode"] == "image", written=turn != NOTHING)
        for turn, count in turns
    ]
    assert [prompt.text for prompt in rendered] == case["texts_before_tokenizer"]
    for row, prompt in enumerate(rendered):
        valid = golden["input_ids"][row][golden["attention_mask"][row].bool()]
        assert list(model.words.ids(prompt)) == valid.tolist()


@pytest.mark.parametrize("root", PROCESSED, ids=lambda root: root.name)
def test_pixels(root: Path) -> None:
    path = root / "internvlu" / "processor_goldens" / "pixels.safetensors"
    if not path.is_file():
        pytest.skip("no pixels are recorded")
    golden = load_file(path)
    for key in sorted({name.split(".")[0] for name in golden}):
        picture = next((root / "internvlu" / "inputs").glob(f"{key}_*"))
        prepared = prepare(picture, model_of(root).config)
        assert torch.equal(prepared.tile, golden[f"{key}.pixel_values"])
        tolerance = 0.0 if RESIZED else RESIZED_APART
        torch.testing.assert_close(prepared.vae_pixels, golden[f"{key}.pixel_values_gen"], atol=tolerance, rtol=0)
        assert [1, *(side // 8 for side in prepared.vae_pixels.shape[1:])] == golden[
            f"{key}.image_grid_thw_gen"
        ].tolist()


@pytest.mark.parametrize("path", SIZES, ids=lambda path: path.parents[2].name)
def test_sizes(path: Path) -> None:
    for name, rule in RULES.items():
        for height, width, *result in json.loads(path.read_text())[name]["rows_h_w_to_h_w"]:
            ours = fit_size(width, height, rule)
            if result[0] == "ValueError" or 0 in result:  # refused, or a side of nothing: ours is a picture
                assert min(ours) >= rule.stride
            else:
                assert ours == (result[1], result[0]), (width, height)


@given(st.integers(1, 20000), st.integers(1, 20000), st.sampled_from(list(RULES.values())))
def test_every_size_is_within_the_rule(width: int, height: int, rule: AreaRule) -> None:
    fitted = fit_size(width, height, rule)
    assert all(rule.stride <= side <= rule.max_side and side % rule.stride == 0 for side in fitted)
    assert fitted[0] * fitted[1] <= rule.max_pixels


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_patches_come_apart_and_together(rows: int, columns: int, channels: int) -> None:
    latent = torch.randn(channels, 2 * rows, 2 * columns)
    tokens = patchify(latent, 2, "cpq")
    assert tokens[0].tolist() == latent[:, :2, :2].flatten().tolist()
    assert torch.equal(unpatchify(tokens, (rows, columns), 2, "cpq"), latent)
    assert torch.equal(unpatchify(torch.stack((tokens, tokens)), (rows, columns), 2, "cpq")[1], latent)


@pytest.mark.parametrize(
    ("text", "pictures", "turn"),
    [
        ("", 1, "<image>."),
        ("", 0, "."),
        ("  a cat ", 0, "A cat."),
        ("a cat?", 2, "<image>\n<image>\na cat?"),
        ("like <image> or <image>", 2, "Like <image> or <image>."),
        ("把它变蓝。", 0, "把它变蓝。."),
        ("ßtraße", 0, "SStraße."),
    ],
)
def test_user_turn(text: str, pictures: int, turn: str) -> None:
    assert user_turn(text, pictures) == turn


def test_reserved_words_are_refused() -> None:
    for word in ("<IMG_CONTEXT>", "<img>", "<|im_end|>"):
        with pytest.raises(SettingsError, match="question"):
            check_special("question", f"what is {word}")
    with pytest.raises(SettingsError, match="2 <image> and there are 1"):
        user_turn("<image> and <image>", 1)


def test_odd_pictures_are_prepared() -> None:
    config = InternVLUConfig(vit_image=28, vae_resize=RULES["smart_resize_tiny_config"])
    for mode, size in (("RGBA", (3, 300)), ("L", (1, 1)), ("P", (700, 20)), ("RGB", (28, 28))):
        prepared = prepare(Image.new(mode, size), config)
        assert prepared.tile.shape == (3, 28, 28) and prepared.vit_image.size == (28, 28)
        assert prepared.vae_pixels.shape == (3, prepared.size[1], prepared.size[0])


def test_sizes_asked_for() -> None:
    assert latent_grid_for(72, 100, InternVLUConfig()) == (12, 8)
    for width, height in ((8, 64), (64, 4096), (64.0, 64)):
        with pytest.raises(SettingsError):
            latent_grid_for(width, height, InternVLUConfig())
