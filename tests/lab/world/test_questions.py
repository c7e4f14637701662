"""Answers are true: a second reader, who knows only the objects and English, comes to the same answer."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from g2tr_core.errors import SettingsError
from g2tr_core.lab.world.captions import sample_captioned
from g2tr_core.lab.world.edits import EDIT_CLASSES, edit
from g2tr_core.lab.world.questions import QUESTION_TYPES, Question, ask
from g2tr_core.lab.world.scene import COLORS, DIGITS, Background, Object, Scene
from g2tr_core.lab.world.splits import scenes
from g2tr_core.lab.world.vocabulary import words

SCENES = list(islice(scenes("train", 11), 3000))
RNG = random.Random(12)
ASKED = {kind: [(s, q) for s in SCENES if (q := ask(s, RNG, kind)) is not None] for kind in QUESTION_TYPES}


def found(scene, words_):
    """Indices of the objects that a noun phrase without its article may mean."""
    singular = {"objects": "object", "digits": "digit", "crosses": "cross"}
    noun = words_.split()[-1]
    noun = singular.get(noun, noun.rstrip("s") if noun != "cross" else noun)
    color = words_.split()[0] if words_.split()[0] in COLORS else None
    return [
        i
        for i, o in enumerate(scene.objects)
        if color in (None, o.color) and (noun in ("object", o.kind) or (noun == "digit" and o.kind in DIGITS))
    ]


def the(scene, words_):
    (index,) = found(scene, words_)
    return index


def extreme(scene, indices, word):
    ordered = sorted(indices, key=lambda i: scene.objects[i].radius, reverse=word == "largest")
    first, second = (scene.objects[i].radius for i in ordered[:2])
    assert max(first, second) / min(first, second) >= 1.2
    return ordered[0]


def solve(scene, text):
    """The answer and the objects that it rests on."""
    o = scene.objects

    def said(pattern):
        hit = re.fullmatch(pattern, text)
        return hit.groups() if hit else None

    if m := said(r"Is there an? (.+)\?"):
        hits = found(scene, m[0])
        return "yes" if hits else "no", hits
    if m := said(r"How many (.+) are there\?"):
        hits = found(scene, m[0])
        return str(len(hits)), hits
    if m := said(r"What color is the (largest|smallest) object\?"):
        i = extreme(scene, range(len(o)), m[0])
        return o[i].color, [i]
    if m := said(r"What color is the (.+)\?"):
        i = the(scene, m[0])
        return o[i].color, [i]
    if m := said(r"What shape is the (.+)\?"):
        i = the(scene, m[0])
        assert o[i].kind not in DIGITS
        return o[i].kind, [i]
    if m := said(r"Where is the (.+)\?"):
        i = the(scene, m[0])
        assert min(abs(o[i].x - 56), abs(o[i].y - 56)) >= 8
        return f"{'top' if o[i].y < 56 else 'bottom'} {'left' if o[i].x < 56 else 'right'}", [i]
    if m := said(r"Is the (.+) larger than the (.+)\?"):
        i, j = the(scene, m[0]), the(scene, m[1])
        ratio = o[i].radius / o[j].radius
        assert max(ratio, 1 / ratio) >= 1.25 - 1e-9
        return "yes" if ratio > 1 else "no", [i, j]
    if m := said(r"Is the (.+) (left of|right of|above|below) the (.+)\?"):
        i, j = the(scene, m[0]), the(scene, m[2])
        x, y = o[j].x - o[i].x, o[j].y - o[i].y
        amount = {"left of": x, "right of": -x, "above": y, "below": -y}[m[1]]
        assert abs(amount) >= 12
        return "yes" if amount > 0 else "no", [i, j]
    if text == "Which digit is there?":
        i = the(scene, "digit")
        return o[i].kind, [i]
    if text == "What digit is largest?":
        i = extreme(scene, found(scene, "digit"), "largest")
        return o[i].kind, [i]
    (color,) = said(r"What digit is (.+)\?")
    i = the(scene, f"{color} digit")
    return o[i].kind, [i]


@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_answers_are_true_and_rest_on_the_marked_objects(kind):
    assert len(ASKED[kind]) > len(SCENES) / 2
    for scene, question in ASKED[kind]:
        assert question.kind == kind
        answer, used = solve(scene, question.text)
        assert question.answer == answer
        if used:
            end, about = question.marks[-1]
            assert end == len(question.text)
            assert sorted(about) == sorted(used)
        else:
            assert question.marks == ()


@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_marks_stand_at_the_ends_of_words(kind):
    for scene, question in ASKED[kind]:
        ends = [end for end, _ in question.marks]
        assert ends == sorted(set(ends))
        for end, about in question.marks:
            assert question.text[end - 1] != " "
            assert end == len(question.text) or question.text[end] in " ?"
            assert about
            assert all(0 <= i < len(scene.objects) for i in about)


def test_yes_and_no_are_even():
    for kind in ("existence", "comparison", "relation"):
        said = Counter(q.answer for _, q in ASKED[kind] if q.answer in ("yes", "no"))
        assert 0.45 < said["yes"] / said.total() < 0.55
    for noun in (r"Is there an? (\d|\w+ \d)\?", r"Is there a \w+ object\?", r"Is there a [a-z]+\?"):
        said = Counter(q.answer for _, q in ASKED["existence"] if re.fullmatch(noun, q.text))
        assert 0.4 < said["yes"] / said.total() < 0.6


def test_counts_reach_from_0_to_5_and_none_dominates():
    said = Counter(q.answer for _, q in ASKED["count"])
    assert set(said) == set("012345")
    assert max(said.values()) < 3 * min(said.values())


def test_most_noes_are_near_misses():
    pairs = [(s, q.text.split()[-2:]) for s, q in ASKED["existence"] if q.answer == "no" and len(q.text.split()) == 5]
    pairs = [(s, color, kind[:-1]) for s, (color, kind) in pairs if kind != "object?"]
    near = [
        (s, color, kind)
        for s, color, kind in pairs
        if color in {o.color for o in s.objects} and kind in {o.kind for o in s.objects}
    ]
    assert len(near) > 0.7 * len(pairs)


def test_references_vary():
    texts = [q.text for _, q in ASKED["position"]]
    for name in (r"[a-z]+", r"\d", r"\w+ object", r"\w+ \d", r"digit"):
        assert any(re.fullmatch(rf"Where is the {name}\?", text) for text in texts)


def test_questions_repeat_for_the_same_seed():
    def first(seed):
        rng = random.Random(seed)
        return [ask(scene, rng, kind) for scene in SCENES[:50] for kind in QUESTION_TYPES]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_a_scene_that_allows_no_question_of_a_kind_says_so():
    scene = Scene((Object("ring", "red", "plain", 56, 56, 10),), Background("black", "plain"))
    assert ask(scene, random.Random(0), "reading") is None
    assert ask(scene, random.Random(0), "relation") is None
    assert ask(scene, random.Random(0), "position") is None
    assert ask(scene, random.Random(0), "comparison") is None
    expected = Question("color", "What color is the ring?", "red", ((22, (0,)), (23, (0,))))
    assert ask(scene, random.Random(0), "color") == expected


def test_an_unknown_type_is_refused():
    with pytest.raises(SettingsError, match="existence"):
        ask(SCENES[0], RNG, "smell")


def test_words_are_exactly_those_of_the_sentences():
    said = set()
    for questions in ASKED.values():
        for _, question in questions:
            said |= set(re.findall(r"\w+", question.text + " " + question.answer))
    for scene in SCENES:
        for kind in EDIT_CLASSES:
            made = edit(scene, RNG, kind)
            said |= set(re.findall(r"\w+", made.instruction)) if made else set()
        said |= set(re.findall(r"\w+", sample_captioned(RNG)[0]))
    assert said == set(words())
    assert words() == sorted(set(words()))
