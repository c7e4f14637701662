"""Pictures show what the scene says: colours, owners, draw order, patterns, night."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from g2tr_core.errors import ImageError, SettingsError
from g2tr_core.lab.world.render import BACKGROUND_RGB, OBJECT_RGB, render, to_image
from g2tr_core.lab.world.scene import BACKGROUNDS, COLORS, KINDS, PATTERNS, Background, Object, Scene, sample_scene
from g2tr_core.lab.world.splits import scenes

SCENES = list(islice(scenes("train", 0), 64))


def nearest(rgb, palette):
    return min(palette, key=lambda name: sum((a - b) ** 2 for a, b in zip(rgb, palette[name], strict=True)))


def test_the_batch_has_the_promised_shape_and_is_the_same_every_time():
    drawn = render(SCENES)
    assert drawn.pixels.shape == (64, 3, 112, 112)
    assert drawn.pixels.dtype == torch.float32
    assert drawn.owner.shape == (64, 112, 112)
    assert drawn.owner.dtype == torch.int64
    assert drawn.pixels.min() >= 0
    assert drawn.pixels.max() <= 1
    assert torch.equal(render(SCENES).pixels, drawn.pixels)


def test_a_scene_does_not_depend_on_its_batch():
    together, alone = render(SCENES[:8]), render(SCENES[3:4])
    torch.testing.assert_close(together.pixels[3:4], alone.pixels, rtol=0, atol=1e-6)
    assert torch.equal(together.owner[3:4], alone.owner)


def test_owners_show_the_color_of_their_object_and_the_background_its_own():
    drawn = render(SCENES)
    for scene, pixels, owner in zip(SCENES, drawn.pixels, drawn.owner, strict=True):
        for index, o in enumerate(scene.objects):
            mine = owner == index
            assert mine.sum() > 0.4 * o.radius**2
            assert nearest(pixels[:, mine].mean(1).tolist(), OBJECT_RGB) == o.color
            rows, columns = mine.nonzero().T
            assert abs(columns.float().mean() + 0.5 - o.x) < 0.4 * o.radius
            assert abs(rows.float().mean() + 0.5 - o.y) < 0.4 * o.radius
        assert nearest(pixels[:, owner == -1].mean(1).tolist(), BACKGROUND_RGB) == scene.background.color


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_fills_its_box_and_stays_inside(kind):
    """No window cuts an object, at any subpixel position and at the largest size."""
    for x in (50.0, 50.49, 50.5, 50.99):
        drawn = render([Scene((Object(kind, "red", "plain", x, 56.3, 21.0),), Background("black", "plain"))])
        rows, columns = (drawn.owner[0] == 0).nonzero().T
        assert 34 <= rows.max() - rows.min() + 1 <= 43
        assert columns.min() + 0.5 >= x - 21.5
        assert columns.max() + 0.5 <= x + 21.5


def test_all_kinds_look_different():
    ground = Background("black", "plain")
    owner = render([Scene((Object(kind, "red", "plain", 56, 56, 10.0),), ground) for kind in KINDS]).owner == 0
    masks = owner.flatten(1).float()
    overlap = masks @ masks.T
    union = masks.sum(1)[:, None] + masks.sum(1)[None] - overlap
    likeness = overlap / union - torch.eye(len(KINDS))
    assert likeness.max() < 0.9


def test_later_objects_are_on_top():
    below, above = Object("circle", "red", "plain", 50, 56, 15), Object("square", "blue", "plain", 56, 56, 15)
    ground = Background("black", "plain")
    one, other = render([Scene((below, above), ground), Scene((above, below), ground)]).owner[:, 56, 53].tolist()
    assert (one, other) == (1, 1)


def test_patterns_are_weak_and_follow_the_seed():
    for pattern in PATTERNS:
        for color in BACKGROUNDS:
            grounds = [Background(color, pattern, seed) for seed in (4, 4, 123457)]
            first, again, second = render([Scene((), ground) for ground in grounds]).pixels
            assert torch.equal(first, again)
            assert torch.equal(first, second) == (pattern == "plain")
            assert (first.amax((1, 2)) - first.amin((1, 2))).max() < 0.2


def test_the_ground_stays_when_objects_go():
    for scene in SCENES[:8]:
        drawn = render([scene, replace(scene, objects=())])
        covered = F.max_pool2d((drawn.owner[:1] >= 0).float(), 5, stride=1, padding=2)[0] > 0
        assert torch.equal(drawn.pixels[0][:, ~covered], drawn.pixels[1][:, ~covered])


def test_night_darkens_and_turns_blue():
    for scene in SCENES[:8]:
        day, night = render([scene, replace(scene, night=True)]).pixels.mean((2, 3))
        assert night.sum() < 0.8 * day.sum()
        assert night[2] / night.sum() > day[2] / day.sum()


def test_colors_are_well_apart():
    objects, grounds = (torch.tensor(list(palette.values())) for palette in (OBJECT_RGB, BACKGROUND_RGB))
    for points in (objects, grounds):
        assert torch.pdist(points).min() > 0.2
    assert torch.cdist(objects, grounds).min() > 0.35
    assert set(OBJECT_RGB) == set(COLORS)
    assert set(BACKGROUND_RGB) == set(BACKGROUNDS)


def test_to_image_gives_8_bit_rgb():
    picture = to_image(render([sample_scene(random.Random(0))]).pixels[0])
    assert (picture.mode, picture.size) == ("RGB", (112, 112))
    with pytest.raises(ImageError, match="one picture"):
        to_image(torch.zeros(1, 3, 8, 8))


def test_nothing_to_draw_is_an_error():
    with pytest.raises(SettingsError, match="no scene"):
        render([])
