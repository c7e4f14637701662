"""The system prompts that make BAGEL think first, and taking its thinking apart from its answer.

The wording is a fact of the checkpoint: it was trained with these sentences.
"""

from __future__ import annotations

from ..registry import Purpose

THINK_FIRST: dict[Purpose, str] = {
    "answer": (
        "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
        "The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> "
        "answer here"
    ),
    "edit": (
        "You should first think about the planning process in the mind and then generate the image. \n"
        "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> "
        "image here"
    ),
}


def split_thinking(text: str) -> tuple[str, str]:
    """Part `<think> … </think> answer` into thinking and answer; without a closing tag it is all answer."""
    before, closing, answer = text.partition("</think>")
    if not closing:
        return "", text
    return before.replace("<think>", "", 1).strip(), answer.strip()
