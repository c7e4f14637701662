"""BAGEL and InternVL-U for lmms-eval, with any method of reduction.

    lmms-eval --model g2tr --model_args pretrained=FOLDER,method=spread,keep_ratio=0.25 --tasks mme --batch_size 8

Arguments are those of `G2TR`. Requests about one picture that follow one another share one reading. `--batch_size`
answers are written together; each picture is read by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, unwrap_generation_output
from lmms_eval.api.model import lmms
from PIL import Image

from ... import checks
from ...errors import SettingsError
from ...files import path_of
from ...generation.settings import Decoding
from ...images import open_image, save_image
from ...reduction import Reduction
from ...reduction.methods import PREFERRED, method_name
from ...umm import load
from ...umm.contract import MOST_TOGETHER
from .session import Asked, Session

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WEIGHTS = {"counts": True, "none": False, "method": None}


class G2TR(lmms):
    """See the module; every argument comes from `--model_args`, as a text or what lmms-eval makes of one.

    Args:
        pretrained: folder or file of a checkpoint.
        method: of the reduction, by name.
        keep_ratio: share of the visual tokens that stay; 1 for all.
        min_tokens: at least so many a picture.
        merge: what becomes of the others, "mean" or "none".
        weights: "counts" lets a token that stays weigh as all that it stands for, "none" does not, "method" leaves it
            to the method.
        purpose: "answer", or "edit" for tasks whose results are pictures (with `--process_with_media`).
        output: folder of the pictures that edits make.
        steps: of an edit; None for the model's own.
        seed: of edits.
        max_new_tokens: of an answer where the task does not say.
        dtype: "bfloat16", "float16" or "float32"; None for the checkpoint's, and float32 on a CPU.
        device: None for a GPU where there is one.
        batch_size: how many answers are written together. Each holds its reading meanwhile.
        max_batch_size: taken and not used; no batch size is found by trying.

    Raises:
        G2TRError: an argument, or the checkpoint, is wrong.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        method: str = PREFERRED,
        keep_ratio: float = 0.5,
        min_tokens: int = 32,
        merge: Any = "mean",
        weights: str | None = "method",
        purpose: str = "answer",
        output: str = "g2tr-edits",
        steps: int | None = None,
        seed: int = 0,
        max_new_tokens: int = 512,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        weights, merge = str(weights).lower(), str(merge).lower()  # lmms-eval reads "none" as None
        for name, value, known in (
            ("weights", weights, WEIGHTS),
            ("purpose", purpose, ("answer", "edit")),
            ("dtype", dtype, (None, *DTYPES)),
        ):
            if value not in known:
                raise SettingsError(
                    f"{value!r} is not known", where=name, fix=f"Choose one of {', '.join(map(str, known))}"
                )
        reduction = Reduction(
            keep_ratio=float(keep_ratio),
            min_tokens=min_tokens,
            merge=merge,
            method=method_name(method),
            token_weights=WEIGHTS[weights],
        )
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        options: dict[str, Any] = {} if dtype is None else {"dtype": DTYPES[dtype]}
        if dtype is None and where == "cpu":
            options = {"dtype": torch.float32}
        self._session = Session(load(pretrained, device=where, **options), reduction)
        self._purpose, self._output, self._steps, self._seed = purpose, path_of(output, "output"), steps, seed
        self._longest, self._together = max_new_tokens, _whole_batch(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer each; for edits, JSON with the file of the picture that was made."""
        if self._purpose == "edit":
            return [self._edited(*request.args) for request in requests]
        return [text for batch in _batches(requests, self._together) for text in self._answered(batch)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The loss of an answer each, and whether it is what the model would say.

        Lower is better: lmms-eval takes the least (`ConfigurableTask.process_results`), and its own models give the
        mean loss of the answer's tokens, as this one does. Blanks around an answer do not count, for it begins a turn.
        """
        found = []
        for request in requests:
            context, target, *rest = request.args
            document, pictures = self._document(*rest)
            answer = target if isinstance(target, str) else target(document)
            likely = self._session.likelihood(pictures, context, answer.strip())
            found.append(_intact((-likely.log_probability / likely.tokens, likely.is_greedy)))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: a conversation of several rounds cannot be had yet."""
        raise SettingsError("the task has several rounds", where="--tasks", fix="Choose tasks with one question each")

    def _edited(self, context: str, settings: dict[str, Any], visuals: Any, number: int, task: str, split: str) -> str:
        _, pictures = self._document(visuals, number, task, split)
        self._output.mkdir(parents=True, exist_ok=True)
        made = self._session.edit(pictures, context, self._seed, steps=self._steps)
        file = save_image(made, self._output / f"{task}_{split}_{number}.png")
        return json.dumps({"text": "", "images": [str(file)]})

    def _answered(self, requests: Sequence[Any]) -> list[str]:
        asked = []
        for context, settings, *document in (request.args for request in requests):
            until = settings.get("until") or ()
            stops = [until] if isinstance(until, str) else until
            asked.append(Asked(self._document(*document)[1], context, self._decoding(settings), stops))
        texts = self._session.answers(asked, self._together)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], text)
        return texts

    def _decoding(self, settings: dict[str, Any]) -> Decoding:
        """How a task wants answers to be written; without sampling the likeliest token each time."""
        samples = settings.get("do_sample", bool(settings.get("temperature")))
        return Decoding(
            max_tokens=int(settings.get("max_new_tokens") or self._longest),
            temperature=float(settings.get("temperature") or 1.0) if samples else 0.0,
            top_p=float(settings.get("top_p") or 1.0),
        )

    def _document(
        self, visuals: Any = None, number: int = 0, task: str = "", split: str = ""
    ) -> tuple[Any, list[Image.Image]]:
        """A task's document and its pictures; without arguments (a likelihood without context) there are none."""
        if visuals is None:
            return None, []
        document = self.task_dict[task][split][number]
        return document, [_picture(each, f"{task}, document {number}") for each in visuals(document) or ()]


def _whole_batch(size: int | str | None) -> int:
    size = int(size) if isinstance(size, str) and size.isdecimal() else size
    if size is not None:
        checks.whole("batch_size", size, low=1, high=MOST_TOGETHER)
    return 1 if size is None else int(size)


def _batches(requests: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def _intact(pair: tuple[float, bool]) -> Any:
    """A pair as the evaluator leaves it alone: 0.7.3 turns a plain one into a text, and then cannot read it."""
    return pair if unwrap_generation_output(pair)[0] == pair else GenerationResult(text=pair)


def _picture(shown: object, where: str) -> Image.Image:
    if isinstance(shown, Image.Image):
        return open_image(shown)
    if isinstance(shown, (str, Path)):
        return open_image(Path(shown))
    raise SettingsError(f"a value of type {type(shown).__name__} is no picture", where=where, fix="Choose another task")
