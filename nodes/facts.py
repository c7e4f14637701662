"""What differs from model to model, in words: the names and numbers that tooltips and messages mention.

They come from the models' registrations, and for an embedded demo with settings of its own from its `config.json`. A
text has a placeholder where a fact stands, `"0 is the model's own: {steps}."`, in every language, so that a further
model needs no edit of any text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ..g2tr_core import umm
from ..g2tr_core.embedded import DEMOS
from ..g2tr_core.umm.registry import LATENT_SPACE_NAMES, Facts, ImageTask, models, own_values


@dataclass(frozen=True)
class Phrases:
    """How a language says facts. `{models}` in a sentence that is left out where it would name none."""

    value: str = "{value} for {model}"
    with_think: str = "{value} ({thinking} with think)"
    demo: str = "the {model} demo"
    comma: str = ", "
    semicolon: str = "; "
    gigabytes: str = "{value} GB"
    files: str = "{model}: {value}"
    autoencoder: str = "{file} ({space}'s)"
    not_using: str = " Not used by {models}."
    no_thinking: str = " {models} cannot think before answers."


ENGLISH = Phrases()
SETTINGS = ("steps", "text_scale", "image_scale", "timestep_shift", "renorm")


@lru_cache
def facts(task: ImageTask = "edit", thinks: bool = True, say: Phrases = ENGLISH) -> dict[str, str]:
    """Every fact that texts mention, by its placeholder.

    Args:
        task: whose settings are meant.
        thinks: whether a node can think first, so that its settings for that matter.
        say: the language.
    """
    found = {setting: _settings(setting, task, thinks, say) for setting in SETTINGS}
    for end, bound in enumerate(("interval_start", "interval_end")):
        found[bound] = _settings("interval", task, thinks, say, end)
    per_model = {
        "max_think_tokens": {known.name: str(known.thinking.max_tokens) for known in models()},
        "width": {known.name: str(known.default_size[0]) for known in models()},
        "height": {known.name: str(known.default_size[1]) for known in models()},
        "speed": {known.name: known.speed for known in models()},
        "largest_side": {known.name: str(known.sides.largest) for known in models()},
        "latents": {known.name: LATENT_SPACE_NAMES[known.latent_space] for known in models()},
        "gigabytes": {known.name: say.gigabytes.format(value=f"{known.download.gigabytes:.0f}") for known in models()},
        "autoencoders": {
            known.name: say.autoencoder.format(file=known.autoencoder, space=LATENT_SPACE_NAMES[known.latent_space])
            for known in models()
        },
    }
    found |= {name: _listed(values, say) for name, values in per_model.items()}
    lists = (say.files.format(model=known.name, value=", ".join(known.download.files)) for known in models())
    return found | {
        "files": say.semicolon.join(lists),
        "models": say.comma.join(known.name for known in models()),
        "not_using_renorm": _sentence(say.not_using, (m for m in models() if "renorm" in m.unused_sampling), say),
        "no_thinking": _sentence(say.no_thinking, (m for m in models() if "answer" not in m.thinks_before), say),
    }


def tip(text: str, task: ImageTask = "edit", *, thinks: bool = True) -> str:
    """An English text with its facts in place."""
    return text.format_map(facts(task, thinks))


def aliases(*more: str) -> list[str]:
    """Words that a node is found by: the pack's, those given, and the models' names.

    Args:
        more: a word with `{model}` stands for one a model.
    """
    names = [known.name.lower() for known in models()]
    return list(dict.fromkeys(word.format(model=name) for word in ("g2tr", "{model}", *more) for name in names))


def demo_settings(task: ImageTask) -> dict[str, dict[str, object]]:
    """The settings that embedded demos bring for a task, by the name of the model that a demo is of."""
    found = {}
    for folder in DEMOS.values():
        config, model = folder / "config.json", umm.model_of(folder)
        stored = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if model is not None and "g2tr" in stored:
            found[model] = stored["g2tr"]["sampling"][task]
    return found


def written(value: object, end: int | None = None) -> str:
    """A value as people write it; of a pair, one end if one is named."""
    if isinstance(value, (tuple, list)):
        return written(value[end]) if end is not None else " to ".join(map(written, value))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _settings(setting: str, task: ImageTask, thinks: bool, say: Phrases, end: int | None = None) -> str:
    """The models' own values of a setting, and those of the demos."""
    plain, thinking = own_values(setting, task), own_values(setting, task, think=thinks)

    def said(model: str) -> str:
        value, with_think = written(plain[model], end), written(thinking[model], end)
        return value if value == with_think else say.with_think.format(value=value, thinking=with_think)

    demos = {
        say.demo.format(model=model): written(own.get(setting, plain[model]), end)
        for model, own in demo_settings(task).items()
    }
    return _listed({model: said(model) for model in plain}, say, demos)


def _listed(values: dict[str, str], say: Phrases, demos: dict[str, str] | None = None) -> str:
    """`49 for BAGEL, 20 for InternVL-U, 12 for the BAGEL demo`; what all models share is said once."""
    shared = set(values.values())
    entries = dict(values) if len(shared) > 1 else {}
    entries |= {demo: value for demo, value in (demos or {}).items() if entries or {value} != shared}
    said = [say.value.format(value=value, model=name) for name, value in entries.items()]
    return say.comma.join(said if len(shared) > 1 else [*shared, *said])


def _sentence(sentence: str, about: Iterable[Facts], say: Phrases) -> str:
    names = say.comma.join(known.name for known in about)
    return sentence.format(models=names) if names else ""
