"""Odd values, and JSON with something wrong in it."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS: list[Any] = [0, -1, 1, 2, 3, 7, 64, 1.5, -0.0, 1e-30, 1e30, 1e308, 2**31, 2**63, 2**64, 10**400]
TEXTS: list[Any] = ["", "x", "\x00", "\ud800", "\x1b[2J", "<|im_end|>", "../x", "/dev/zero", "a" * 5000, "½", "🦊" * 9]
SPECIAL: list[Any] = [None, True, False, float("nan"), float("inf"), -float("inf")]
NESTED: list[Any] = [[], {}, [None], {"": None}, [[0] * 3] * 3, {"a": {"b": [1]}}]
ODD = [*NUMBERS, *TEXTS, *SPECIAL, *NESTED]
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "latin-1")


def mutated(rng: Random, tree: Any) -> Any:
    """A copy of a JSON value in which one place is changed, dropped, added, renamed or swapped."""
    tree = json.loads(json.dumps(tree))
    places = list(_places(tree))
    if not places:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    value, way = holder[key], rng.randrange(8)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[rng.choice([*TEXTS, key.upper(), f"{key}_"])] = holder.pop(key)
    elif way == 2:
        other, name = rng.choice(places)
        if name in other if isinstance(other, dict) else name < len(other):
            holder[key], other[name] = other[name], holder[key]
    elif way == 3:
        holder[key] = rng.choice((str(value), [value], {"x": value}))
    elif way in (4, 5) and isinstance(value, (int, float)) and abs(value) < 1e300:
        holder[key] = rng.choice((value + 1, value - 1, value * 2, value // 2, -value, value * 1000, float(value)))
    elif way == 6 and isinstance(holder, dict):
        holder[f"{key}{rng.choice('_2 x')}"] = rng.choice(ODD)
    else:
        holder[key] = rng.choice(ODD)
    return tree


def written(rng: Random, tree: Any) -> bytes:
    """JSON text, now and then damaged as a text."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    way = rng.randrange(12)
    if way == 0:
        return damaged(rng, text.encode("utf-8", "surrogatepass"))
    if way == 1:
        return text.encode(rng.choice(ENCODINGS), "replace")
    if way == 2:
        place = text.find(":") + 1
        text = f"{text[:place]}{rng.choice(('[' * 100_000, '9' * 10_000, 'NaN', '1e999', '01', ''))}{text[place:]}"
    if way == 3 and isinstance(tree, dict) and tree:
        key = rng.choice(list(tree))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(rng.choice(ODD))}}}"  # the same key twice
    return text.encode("utf-8", "surrogatepass")


def damaged(rng: Random, content: bytes) -> bytes:
    """Bytes that are cut, flipped, repeated or grown."""
    way, at = rng.randrange(5), rng.randrange(len(content) + 1)
    if way == 0:
        return content[:at]
    if way == 1:
        return content[:at] + rng.randbytes(rng.choice((1, 8, 4096))) + content[at:]
    if way == 2:
        return content[:at] + content[at + rng.randrange(1, 64) :]
    if way == 3:
        return content + content[:at]
    changed = bytearray(content)
    for _ in range(min(len(changed), rng.choice((1, 3, 30)))):
        changed[rng.randrange(min(len(changed), rng.choice((64, 1024, len(changed)))))] = rng.randrange(256)
    return bytes(changed)


def _places(tree: Any) -> Any:
    """Every (holder, key) in a JSON value."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(entries):
        yield tree, key
        yield from _places(value)
