"""How far the training has come, on scenes of the development split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...generation.solvers import flow_times
from ..world.questions import Question
from .examples import Example
from .losses import Learner

STEPS = 8  # of the denoising that edits are judged by


@torch.no_grad()
def evaluate(learner: Learner, examples: Sequence[Example], questions: list[list[Question]]) -> dict[str, float]:
    """Share of right answers by type, of edits that come closer to the target than to the source by class, and the
    mean squared error of latents where an edit changes nothing."""
    scores: dict[str, list[float]] = defaultdict(list)
    for begin in range(0, len(examples), 32):
        part, asked = examples[begin : begin + 32], questions[begin : begin + 32]
        _, visual = learner.visual_tokens(part)
        for question, right in zip(
            (q for group in asked for q in group), _answers(learner, visual, asked), strict=True
        ):
            scores[f"answer.{question.kind}"].append(float(right))
        _edits(learner, visual, part, scores)
    means = {name: sum(values) / len(values) for name, values in sorted(scores.items())}
    for kind in ("answer", "edit"):
        values = [value for name, part in scores.items() if name.startswith(f"{kind}.") for value in part]
        means[f"{kind}s"] = sum(values) / len(values)
    return means


def _answers(learner: Learner, visual: Tensor, asked: list[list[Question]]) -> list[bool]:
    """Whether greedy decoding would give each answer: all its tokens are the likeliest behind the right ones."""
    texts = learner.writer.write([(q.text, (), q.answer) for group in asked for q in group])
    hidden, _ = learner.text_rows(learner.question_prefix(visual), texts, len(asked[0]))
    likeliest = learner.network.language_model.lm_head(hidden).argmax(-1)
    right: list[bool] = ((likeliest == texts.answers) | (texts.answers == -100)).all(1).tolist()
    return right


def _edits(learner: Learner, visual: Tensor, part: Sequence[Example], scores: dict[str, list[float]]) -> None:
    targets = [target for one in part for target in one.targets]
    group = len(part[0].targets)
    source = torch.stack([one.latent for one in part])
    prefix = learner.edit_prefix(visual, source)
    texts = learner.writer.write([(target.edit.instruction, (), None) for target in targets])
    clean, changed = (torch.stack([getattr(target, name) for target in targets]) for name in ("latent", "changed"))
    latent = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean.device)
    for now, after in pairwise(flow_times(STEPS, learner.recipe.shift)):
        velocity = learner.denoise(prefix, texts, group, latent, now.expand(len(clean)).to(clean.device)).velocity
        latent = latent - velocity * (now - after)
    to_target = (latent - clean).square().mean(-1)  # [B, 49]
    to_source = (latent - source.repeat_interleave(group, 0)).square().mean(-1)
    for index, target in enumerate(targets):
        inside = changed[index]
        closer = (to_target[index] * inside).sum() < (to_source[index] * inside).sum()
        scores[f"edit.{target.edit.kind}"].append(float(closer))
        if not inside.all():
            scores["outside"].append(float(to_target[index][~inside].mean()))
        scores["inside"].append(float(to_target[index][inside].mean()))
