"""Scenes are deterministic, of the promised make-up, and their compositions never cross the split."""

from __future__ import annotations

import random
from itertools import combinations, islice

import pytest

from g2tr_core.errors import SettingsError
from g2tr_core.lab.world.captions import sample_captioned
from g2tr_core.lab.world.scene import (
    COLORS,
    KINDS,
    MAX_RADIUS,
    MIN_DIGIT_RADIUS,
    MIN_RADIUS,
    PLACES,
    SIDE,
    Background,
    Object,
    sample_scene,
    separate,
)
from g2tr_core.lab.world.splits import captioned_scenes, scenes, split_of

SCENES = [sample_scene(random.Random(seed)) for seed in range(3000)]


def share(hits):
    hits = list(hits)
    return sum(hits) / len(hits)


def test_the_same_seed_gives_the_same_scenes():
    assert [sample_scene(random.Random(seed)) for seed in range(3000)] == SCENES
    assert list(islice(scenes("test", 7), 20)) == list(islice(scenes("test", 7), 20))
    assert list(islice(scenes("train", 7), 20)) != list(islice(scenes("train", 8), 20))


def test_every_scene_keeps_the_rules():
    for scene in SCENES:
        assert 2 <= len(scene.objects) <= 5
        assert len({(o.color, o.kind) for o in scene.objects}) == len(scene.objects)
        assert not scene.night
        for o in scene.objects:
            assert (MIN_DIGIT_RADIUS if o.is_digit else MIN_RADIUS) <= o.radius <= MAX_RADIUS
            assert o.radius <= min(o.x, o.y, SIDE - o.x, SIDE - o.y)
            assert o.fill == "plain" or not o.is_digit
        assert all(separate(p.x, p.y, p.radius, (q.x, q.y, q.radius)) for p, q in combinations(scene.objects, 2))


def test_scenes_have_something_to_read_to_count_and_to_confuse():
    objects = [o for scene in SCENES for o in scene.objects]
    assert share(o.is_digit for o in objects) < 1 / 3
    assert 0.57 < share(any(o.is_digit for o in s.objects) for s in SCENES) < 0.68
    assert share(len({o.color for o in s.objects}) < len(s.objects) for s in SCENES) > 0.5
    assert share(len({o.kind for o in s.objects}) < len(s.objects) for s in SCENES) > 0.4
    assert {o.kind for o in objects} == set(KINDS)
    assert {o.color for o in objects} == set(COLORS)


def test_no_composition_is_in_two_splits():
    def compositions(split):
        drawn = [*islice(scenes(split, 1), 400), *(s for _, s in islice(captioned_scenes(split, 2), 400))]
        assert all(split_of(scene) == split for scene in drawn)
        return {tuple(sorted((o.color, o.kind) for o in scene.objects)) for scene in drawn}

    train, dev, test = map(compositions, ("train", "dev", "test"))
    assert not train & dev and not train & test and not dev & test
    assert 0.06 < share(split_of(scene) == "test" for scene in SCENES) < 0.11
    assert 0.02 < share(split_of(scene) == "dev" for scene in SCENES) < 0.07


def test_the_split_ignores_where_things_are():
    scene = SCENES[0]
    mirrored = tuple(Object(o.kind, o.color, o.fill, SIDE - o.x, o.y, o.radius) for o in reversed(scene.objects))
    assert split_of(type(scene)(mirrored, Background("pink", "noisy"))) == split_of(scene)


def test_a_caption_says_everything_there_is():
    for seed in range(300):
        caption, scene = sample_captioned(random.Random(seed))
        assert caption[0] == "A"
        assert caption.endswith(f" on a {scene.background.color} background.")
        assert scene.background.pattern == "plain"
        assert 1 <= len(scene.objects) <= 3
        places = {centre: name for name, centre in PLACES.items()}
        for o in scene.objects:
            assert f"{o.color} {o.kind} at the {places[o.x, o.y]}" in caption
        assert caption.count(" at the ") == len(scene.objects)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"kind": "hexagon"}, "kind"),
        ({"color": "beige"}, "color"),
        ({"fill": "furry"}, "fill"),
        ({"radius": 30.0}, "radius"),
        ({"radius": float("nan")}, "radius"),
        ({"x": 3.0}, "x, y"),
    ],
)
def test_an_object_of_another_world_is_refused(wrong, word):
    right = {"kind": "star", "color": "red", "fill": "plain", "x": 50.0, "y": 50.0, "radius": 12.0}
    with pytest.raises(SettingsError, match=word):
        Object(**(right | wrong))


def test_a_background_of_another_world_is_refused():
    with pytest.raises(SettingsError, match="pattern"):
        Background("black", "starry")
