"""What InternVL-U is told: system messages, the user's turn, and the rows that guidance compares.

The wording, the full stop that is added and the capital letter are facts of the checkpoint: it was trained with them
(goldens `processor_goldens`, `prompt_facts.json`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ...checkpoints.tokenizer import encode, token_ids
from ...errors import SettingsError

Task = Literal["answer", "edit", "imagine"]

PLACEHOLDER = "<image>"
START, END, VISUAL = "<img>", "</img>", "<IMG_CONTEXT>"
TURN, TURN_END = "<|im_start|>", "<|im_end|>"
GET_TOKENIZER = "InternVL-U's `processor` folder"
RESERVED = (START, END, VISUAL, TURN, TURN_END)

# The order of the rows of `special_token_embedding`.
SPECIAL = (
    "</box>",
    "<box>",
    VISUAL,
    END,
    START,
    "</quad>",
    "<quad>",
    "</ref>",
    "<ref>",
    "<img_uncond>",
)

WHO = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
SYSTEM: dict[Task, str] = {
    "answer": WHO,
    "imagine": WHO
    + "请通过详细描述图像中物体和背景的颜色、形状、大小、纹理、数量、文字内容以及空间位置关系等来对图像进行全面描述：",
    "edit": WHO
    + "请描述输入图像的关键特征（颜色、形状、大小、纹理、物体、背景等），然后解释用户的文本指令应该如何改变或修改图像，"
    "从而生成一个满足用户要求的新图像，并适当保持与原始输入的一致性。：",
}
NO_TEXT = "Generate an image based on reference images."
NOTHING = "Here is a random image <img_uncond>:"


@dataclass(frozen=True)
class Prompt:
    """A whole prompt.

    Args:
        pieces: its text in order, and whether a person wrote it: there, words such as `<|im_end|>` are words.
    """

    pieces: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece for piece, _ in self.pieces)


@dataclass(frozen=True)
class ChatTokenizer:
    """The tokenizer, and the ids that have a meaning of their own.

    Args:
        tokenizer: of transformers.
        special: ids of `SPECIAL`, in that order.
        turn: id of `<|im_start|>`.
        ends: ids that end a text: the tokenizer's own, and `<img>`, with which the model asks to generate.
    """

    tokenizer: Any
    special: tuple[int, ...]
    turn: int
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, home: Path) -> ChatTokenizer:
        """Look the ids up; arguments are what `checkpoints.tokenizer.load_tokenizer` returned.

        Raises:
            CheckpointError: the tokenizer lacks some.
        """
        *special, turn, turn_end = token_ids(tokenizer, (*SPECIAL, TURN, TURN_END), home, GET_TOKENIZER)
        ends = frozenset((tokenizer.eos_token_id, turn_end, special[SPECIAL.index(START)]))
        return cls(tokenizer, tuple(special), turn, ends)

    @property
    def visual(self) -> int:
        """The id that stands for one visual token."""
        return self.special[SPECIAL.index(VISUAL)]

    @property
    def start(self) -> int:
        """The id of `<img>`, behind which a picture is to come."""
        return self.special[SPECIAL.index(START)]

    @property
    def end(self) -> int:
        """The id of `</img>`, the last of what a picture is to the language model."""
        return self.special[SPECIAL.index(END)]

    def ids(self, prompt: Prompt, *, special_tokens: bool = False) -> tuple[int, ...]:
        """A prompt as token ids; with `special_tokens`, what people wrote may hold some."""
        pieces = ((prompt.text, False),) if special_tokens else prompt.pieces
        encoded = (encode(self.tokenizer, text, special_tokens=not written) for text, written in pieces)
        return tuple(chain.from_iterable(encoded))

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as a text, without special tokens."""
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded

    def turn_of_user(self, ids: Sequence[int]) -> int:
        """Where the user's turn begins: the second `<|im_start|>`."""
        return ids.index(self.turn, ids.index(self.turn) + 1)


def check_special(field: str, text: str) -> None:
    """Refuse the special tokens that frame pictures and turns, where special tokens are let through.

    Raises:
        SettingsError: the text holds one.
    """
    for word in RESERVED:
        if word in text:
            raise SettingsError(
                f"the text holds {word}, which the model reads as a sign, not as a word",
                where=field,
                fix=f"Leave it out; {PLACEHOLDER} stands for a picture",
            )


def user_turn(text: str, pictures: int) -> str:
    """What the user says, as the model expects it.

    Args:
        text: may hold `<image>` where pictures belong; missing ones are put in front.
        pictures: how many there are.

    Raises:
        SettingsError: there are more placeholders than pictures.
    """
    placed = text.count(PLACEHOLDER)
    if placed > pictures:
        raise SettingsError(
            f"the text holds {placed} {PLACEHOLDER} and there are {pictures} pictures",
            fix=f"Give a picture for each {PLACEHOLDER}, or leave them out",
        )
    said = (f"{PLACEHOLDER}\n" * (pictures - placed) + text).strip()
    said = said[:1].upper() + said[1:]
    return said if said.endswith((".", "!", "?", ",", ":", ";")) else said + "."


def no_text_turn(pictures: int) -> str:
    """The user's turn of the row that keeps the pictures and drops the text."""
    return user_turn(NO_TEXT, pictures) if pictures else NOTHING


def render(system: str, user: str, visual_tokens: Sequence[int], *, opens_image: bool, written: bool = True) -> Prompt:
    """A whole prompt.

    Args:
        system: the system message.
        user: the user's turn; its placeholders are filled.
        visual_tokens: of each picture, in order.
        opens_image: open a picture behind it.
        written: whether a person wrote the user's turn.
    """
    pieces = [(f"{TURN}system\n{system}{TURN_END}\n{TURN}user\n", False)]
    first, *others = user.split(PLACEHOLDER, len(visual_tokens))
    pieces.append((first, written))
    for count, text in zip(visual_tokens, others, strict=True):
        pieces += [(START + VISUAL * count + END, False), (text, written)]
    pieces.append((f"{TURN_END}\n{TURN}assistant\n{START if opens_image else ''}", False))
    return Prompt(tuple(piece for piece in pieces if piece[0]))
