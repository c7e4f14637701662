"""Targets are what the instruction says, and nothing else changes, in the scene and in its picture."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from g2tr_core.errors import SettingsError
from g2tr_core.lab.world.edits import EDIT_CLASSES, edit, mistakes
from g2tr_core.lab.world.render import render
from g2tr_core.lab.world.scene import PLACES, Background, Object, Scene
from g2tr_core.lab.world.splits import scenes

SCENES = list(islice(scenes("test", 21), 1000))
RNG = random.Random(22)
MADE = {kind: [(s, e) for s in SCENES if (e := edit(s, RNG, kind)) is not None] for kind in EDIT_CLASSES}


def the(scene, name):
    """Index of the one object that a name means, by its words alone."""
    *color, noun = name.split()
    (index,) = (
        i
        for i, o in enumerate(scene.objects)
        if color in ([], [o.color]) and (noun in ("object", o.kind) or (noun == "digit" and o.is_digit))
    )
    return index


def beside(scene, direction, anchor):
    """Index of the one object on a side of another."""
    a = scene.objects[anchor]
    ways = {
        "left of": lambda o: a.x - o.x,
        "right of": lambda o: o.x - a.x,
        "above": lambda o: a.y - o.y,
        "below": lambda o: o.y - a.y,
    }
    distances = {i: ways[direction](o) for i, o in enumerate(scene.objects) if i != anchor}
    assert all(abs(d) >= 6 for d in distances.values())
    (index,) = (i for i, d in distances.items() if d > 0)
    return index


def carry_out(scene, text):
    """The scene that an instruction leads to, read by a second reader; and the objects that change."""
    objects = list(scene.objects)

    def said(pattern):
        hit = re.fullmatch(pattern, text)
        return hit.groups() if hit else None

    def changed(*indices):
        return replace(scene, objects=tuple(o for o in objects if o is not None)), indices

    if text == "Turn it into night.":
        return replace(scene, night=True), ()
    if m := said(r"Make the background (\w+)\."):
        return replace(scene, background=replace(scene.background, color=m[0])), ()
    if m := said(r"Make the (largest|smallest) object (\w+)\."):
        choose = max if m[0] == "largest" else min
        i = choose(range(len(objects)), key=lambda i: objects[i].radius)
        objects[i] = replace(objects[i], color=m[1])
        return changed(i)
    if m := said(r"Make the (.+) (\w+)\."):
        i = the(scene, m[0])
        objects[i] = replace(objects[i], color=m[1])
        return changed(i)
    if m := said(r"Add an? (\w+) (\w+) at the (.+)\."):
        objects.append(Object(m[1], m[0], "plain", *PLACES[m[2]], 14.0))
        return changed()
    if m := said(r"Remove the object (left of|right of|above|below) the (.+)\."):
        i = beside(scene, m[0], the(scene, m[1]))
        objects[i] = None
        return changed(i)
    if m := said(r"Remove the (.+)\."):
        i = the(scene, m[0])
        objects[i] = None
        return changed(i)
    if m := said(r"Replace the (.+) with an? (\w+) (\w+)\."):
        i = the(scene, m[0])
        objects[i] = replace(objects[i], color=m[1], kind=m[2], fill="plain")
        return changed(i)
    first, second = said(r"Swap the colors of the (.+) and the (.+)\.")
    i, j = the(scene, first), the(scene, second)
    objects[i], objects[j] = (
        replace(objects[i], color=objects[j].color),
        replace(objects[j], color=objects[i].color),
    )
    return changed(i, j)


@pytest.mark.parametrize("kind", EDIT_CLASSES)
def test_the_target_is_what_the_instruction_says(kind):
    assert len(MADE[kind]) > len(SCENES) / 2
    for scene, made in MADE[kind]:
        assert made.kind == kind
        assert (made.target, made.changed) == carry_out(scene, made.instruction)
        assert made.target != scene
        assert 1 <= len(made.target.objects) <= 5
        assert len({(o.color, o.kind) for o in made.target.objects}) == len(made.target.objects)


@pytest.mark.parametrize("kind", EDIT_CLASSES)
def test_marks_stand_at_the_ends_of_words_and_end_with_what_changes(kind):
    for _, made in MADE[kind]:
        for end, about in made.marks:
            assert made.instruction[end - 1] != " "
            assert end == len(made.instruction) or made.instruction[end] in " ."
            assert about
        last = made.marks[-1] if made.marks else None
        assert last == ((len(made.instruction), made.changed) if made.changed else None)


@pytest.mark.parametrize("kind", EDIT_CLASSES)
def test_the_picture_changes_there_and_only_there(kind):
    some = MADE[kind][:64]
    before, after = render([s for s, _ in some]), render([e.target for _, e in some])
    change = (before.pixels - after.pixels).abs().amax(1)  # [B, H, W]
    for i, (scene, made) in enumerate(some):
        assert (change[i] > 0.1).sum() > 30
        if kind == "global":
            continue
        mask = torch.zeros(112, 112, dtype=torch.bool)
        for index in made.changed:
            mask |= before.owner[i] == index
            if len(made.target.objects) == len(scene.objects):
                mask |= after.owner[i] == index
        if kind == "insertion":
            mask |= after.owner[i] == len(scene.objects)
        soft_edge = F.max_pool2d(mask[None].float(), 5, stride=1, padding=2)[0] > 0  # tips of stars are thin
        assert change[i][~soft_edge].max() == 0


@pytest.mark.parametrize("kind", EDIT_CLASSES)
def test_mistakes_are_neither_source_nor_target_but_near(kind):
    for scene, made in MADE[kind][:64]:
        wrong = mistakes(scene, made)
        assert scene not in wrong and made.target not in wrong
        if kind in ("attribute", "insertion", "replacement"):
            (new,) = set(made.target.objects) - set(scene.objects)
            kinds, colors = (
                {getattr(o, what) for one in wrong for o in set(one.objects) - set(scene.objects)}
                for what in ("kind", "color")
            )
            assert len(kinds) >= 15 and len(colors) >= 6, new  # one may be the source itself
        if kind in ("attribute", "removal"):
            (meant,) = made.changed
            taken = {i for one in wrong for i, o in enumerate(scene.objects) if o not in one.objects} - {meant}
            color = made.target.objects[meant].color if kind == "attribute" else None
            assert taken == {i for i, o in enumerate(scene.objects) if i != meant and o.color != color}
        if made.instruction.startswith("Make the background"):
            assert {one.background.color for one in wrong} | {scene.background.color, made.target.background.color} == {
                "black", "gray", "brown", "navy", "pink"
            }  # fmt: skip


def test_reading_edits_come_in_all_three_forms():
    starts = {made.instruction.split()[0] for _, made in MADE["reading"]}
    assert starts == {"Make", "Remove", "Swap"}


def test_a_full_scene_takes_no_more_objects():
    full = next(scene for scene in SCENES if len(scene.objects) == 5)
    assert edit(full, random.Random(0), "insertion") is None


def test_no_second_night():
    night = Scene((Object("star", "red", "plain", 40, 40, 10),), Background("navy", "plain"), night=True)
    instructions = {edit(night, random.Random(seed), "global").instruction for seed in range(50)}
    assert "Turn it into night." not in instructions


def test_edits_repeat_for_the_same_seed():
    def first(seed):
        rng = random.Random(seed)
        return [edit(scene, rng, kind) for scene in SCENES[:50] for kind in EDIT_CLASSES]

    assert first(1) == first(1)


def test_an_unknown_class_is_refused():
    with pytest.raises(SettingsError, match="attribute"):
        edit(SCENES[0], RNG, "haircut")
