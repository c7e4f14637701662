"""One step's losses: answers, flow, and the three kinds of help that only training has.

The helps are dense labels (what each patch shows, read off the visual tokens by heads that are thrown away), foresight
(the same for the cells of an edit's target, read off the rows that denoise them, halfway through the decoder) and
grounding (where one attention head should look: a word at its object, the end of a sentence at all that it is about, a
cell to be generated at the picture's own cell or, where the edit changes it, at the instruction).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...nn.blocks import Block
from ...nn.decoder import Layer
from ...umm.bagel.network import BagelNetwork
from ..world.questions import Question
from ..world.scene import COLORS, KINDS
from .examples import Caption, Example, Labels
from .memory import Prefix, Suffix
from .recipe import Recipe
from .texts import Texts, Writer

NEVER = float("-inf")


class Heads(nn.Module):
    """Linear readings of tokens [..., C], thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind, self.color = nn.Linear(width, len(KINDS) + 1), nn.Linear(width, len(COLORS) + 1)
        self.place, self.extreme = nn.Linear(width, 3), nn.Linear(width, 3)

    def losses(self, features: Tensor, labels: Sequence[Labels], weight: Tensor | None = None) -> dict[str, Tensor]:
        """features [B, N, C] against labels; patches with objects count five times, and `weight` [B, N] times that."""
        kind, color, place, extreme = (
            torch.stack([getattr(one, name) for one in labels]) for name in ("kind", "color", "place", "extreme")
        )
        shown = kind < len(KINDS)
        weight = (1 + 4 * shown) * (torch.ones(shown.shape, device=shown.device) if weight is None else weight)
        objects = weight * shown

        def classes(head: nn.Module, label: Tensor) -> Tensor:
            loss = F.cross_entropy(head(features).float().flatten(0, 1), label.flatten(), reduction="none")
            return (loss * weight.flatten()).sum() / weight.sum()

        distance = (self.place(features).float() - 4 * place).abs().sum(-1)  # to the pixel: squares would not care
        return {
            "kind": classes(self.kind, kind),
            "color": classes(self.color, color),
            "extreme": classes(self.extreme, extreme),
            "place": (distance * objects).sum() / objects.sum(),
        }


class Denoised(NamedTuple):
    """What came of a denoising block: velocities [B, 49, 64], what was attended to, those rows halfway [B, 49, C]."""

    velocity: Tensor
    memory: Suffix
    halfway: Tensor


@dataclass
class Learner:
    """The network in training: blocks as in `umm/bagel`, a batch at a time.

    Args:
        network: the network, in the dtype that it computes with.
        heads: for the dense labels.
        foresight: for those of an edit's target.
        writer: tokenises.
        recipe: weights and layers of the losses.
    """

    network: BagelNetwork
    heads: Heads
    foresight: Heads
    writer: Writer
    recipe: Recipe

    def __post_init__(self) -> None:
        config = self.network.config
        device = self.network.vae2llm.weight.device
        self.vit_cells = torch.arange(config.vit_side**2, device=device)
        self.latent_cells = torch.arange(config.latent_side**2, device=device)
        self.device, self.dtype = device, self.network.compute_dtype
        self.latent_rows = len(self.latent_cells)

    # Blocks

    def encode(self, patches: Tensor) -> Tensor:
        """Patches [B, 64, 588] -> visual tokens [B, 64, C] without positions."""
        with sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext():  # a fifth of the time there
            return self.network.visual_features(patches, self.vit_cells)

    def visual_tokens(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Visual tokens [B, 64, C] without positions, and the ViT block [B, 66, C]."""
        features = self.encode(torch.stack([one.patches for one in examples]))
        placed = features + self.network.vit_pos_embed(self.vit_cells, features)
        start, end = self.network.markers(self.device).expand(len(examples), -1, -1).split(1, dim=1)
        return features, torch.cat((start, placed, end), dim=1)

    def question_prefix(self, visual: Tensor) -> Prefix:
        """The context of questions: the ViT block alone."""
        prefix = Prefix()
        self._remember(Block(visual, None, torch.zeros(1, device=self.device), 1, causal=False), prefix)
        return prefix

    def edit_prefix(self, visual: Tensor, latent: Tensor) -> Prefix:
        """The context of edits: the latent block [B, 49, 64], then the ViT block. Rows: markers, ViT, latent."""
        batch = len(visual)
        und = torch.cat((self.network.markers(self.device).expand(batch, -1, -1), visual), dim=1)
        gen = self._latent(latent, torch.zeros(batch, device=self.device))
        is_visual = torch.zeros(und.shape[1] + gen.shape[1], dtype=torch.bool, device=self.device)
        is_visual[2 : und.shape[1]] = True
        mask = torch.zeros(len(is_visual), len(is_visual), device=self.device, dtype=self.dtype)
        mask.masked_fill_(~is_visual[:, None] & is_visual[None, :], NEVER)
        prefix = Prefix(mask)
        self._remember(Block(und, gen, is_visual.float(), 2, causal=False), prefix)
        return prefix

    def text_rows(self, prefix: Prefix, texts: Texts, group: int) -> tuple[Tensor, Suffix]:
        """Questions and answers behind pictures: hidden rows [B·group, n, C]."""
        und = self.network.language_model.model.embed_tokens(texts.ids)
        rows = und.shape[1]
        mask = torch.zeros(1, rows, rows, device=self.device, dtype=self.dtype)
        mask.masked_fill_(_later(rows, self.device), NEVER)
        memory = Suffix(prefix, group, mask, (self.recipe.ground_nouns, self.recipe.ground_finals))
        positions = 1.0 + torch.arange(rows, device=self.device)
        hidden, _ = self.network.language_model.model(Block(und, None, positions, rows, causal=True), memory)
        return hidden, memory

    def denoise(self, prefix: Prefix | None, texts: Texts, group: int, noisy: Tensor, time: Tensor) -> Denoised:
        """Noisy latents [B·group, 49, 64] at times [B·group], behind pictures and instructions."""
        count, rows = texts.ids.shape
        position = 0.0 if prefix is None else 2.0
        und = torch.cat(
            (
                self.network.language_model.model.embed_tokens(texts.ids),
                self.network.markers(self.device).expand(count, -1, -1),
            ),
            dim=1,
        )
        gen = self._latent(noisy, time)
        own = rows + 2 + self.latent_rows
        said = torch.arange(rows, device=self.device) < texts.lengths[:, None]  # [B, n]
        mask = torch.zeros(count, own, own, device=self.device, dtype=self.dtype)
        mask[:, :rows, :rows].masked_fill_(_later(rows, self.device), NEVER)
        mask[:, :rows, rows:] = NEVER
        mask[:, rows:, :rows].masked_fill_(~said[:, None], NEVER)
        behind = texts.lengths[:, None].expand(-1, 2 + self.latent_rows)
        spoken = torch.arange(rows, device=self.device).expand(count, -1)
        positions = position + torch.cat((spoken, behind), dim=1).float()
        recipe = self.recipe
        memory = Suffix(prefix, group, mask, (recipe.ground_nouns, recipe.ground_finals, recipe.ground_cells))
        decoder = self.network.language_model.model
        halfway: list[Tensor] = []
        hook = decoder.layers[recipe.foresee].register_forward_hook(lambda *call: halfway.append(call[2].gen))
        _, hidden = decoder(Block(und, gen, positions, 0, causal=False), memory)
        hook.remove()
        return Denoised(self.network.llm2vae(hidden).float(), memory, halfway[0])

    def _remember(self, block: Block, prefix: Prefix) -> None:
        """Run a block for the rows that it leaves; the last layer's output, which nobody reads, is left out."""
        decoder = self.network.language_model.model
        rotary = decoder.rotary(block)
        *body, last = cast(Sequence[Layer], decoder.layers)
        for index, layer in enumerate(body):
            block = layer(block, rotary, prefix, index)
        last.remember(block, rotary, prefix, len(body))

    def _latent(self, patches: Tensor, time: Tensor) -> Tensor:
        gen = self.network.latent_features(patches) + self.network.time_embedder(time, self.dtype)[:, None]
        return gen + self.network.latent_pos_embed(self.latent_cells, gen)

    # Losses

    def answer_loss(
        self, visual: Tensor, examples: Sequence[Example], questions: list[list[Question]]
    ) -> dict[str, Tensor]:
        """Cross-entropy of the answers, and grounding of the questions."""
        group = len(questions[0])
        texts = self.writer.write([(q.text, q.marks, q.answer) for asked in questions for q in asked])
        hidden, memory = self.text_rows(self.question_prefix(visual), texts, group)
        known = texts.answers != -100
        logits = self.network.language_model.lm_head(hidden[known]).float()
        return {
            "answer": F.cross_entropy(logits, texts.answers[known]),
            "ground_question": self._grounding(memory, texts, examples, group, first=1),
        }

    def flow_loss(self, visual: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Squared error of the velocity, cells that an edit changes counting more, foresight and grounding."""
        recipe = self.recipe
        targets = [target for one in examples for target in one.targets]
        group = len(examples[0].targets)
        prefix = self.edit_prefix(visual, torch.stack([one.latent for one in examples]))
        texts = self.writer.write([(target.edit.instruction, target.edit.marks, None) for target in targets])
        clean = torch.stack([target.latent for target in targets])
        changed = torch.stack([target.changed for target in targets])
        made, truth = self._flow(prefix, texts, group, clean)
        weight = 1 + (recipe.changed_weight - 1) * changed.float()
        error = (made.velocity - truth).square().mean(-1)
        before = prefix.rows[0][0].shape[1]
        rows = texts.ids.shape[1]
        attended = made.memory.attended[recipe.ground_cells][:, rows + 2 :]  # [B, 49, P + n]
        own = before - self.latent_rows + self.latent_cells  # each cell's row in the picture's latent block
        last = before + texts.lengths - 2  # the sentence's punctuation
        at_source = attended.gather(2, own.expand(len(targets), -1)[..., None]).squeeze(2)
        at_text = attended.gather(2, last[:, None, None].expand(-1, self.latent_rows, 1)).squeeze(2)
        looked = -(torch.where(changed, at_text, at_source) * weight).sum() / weight.sum()
        halfway = F.rms_norm(made.halfway, made.halfway.shape[-1:])
        foreseen = self.foresight.losses(halfway, [target.labels for target in targets], weight)
        return {
            "flow": (error * weight).sum() / weight.sum(),
            **{f"foreseen_{name}": foreseen[name] for name in ("kind", "color", "place")},
            "ground_edit": self._grounding(made.memory, texts, examples, group, first=3),
            "ground_cells": looked,
        }

    def caption_loss(self, captions: Sequence[Caption]) -> dict[str, Tensor]:
        """Squared error of the velocity of pictures from text alone."""
        texts = self.writer.write([(one.text, (), None) for one in captions])
        made, truth = self._flow(None, texts, 1, torch.stack([one.latent for one in captions]))
        return {"caption": F.mse_loss(made.velocity, truth)}

    def _flow(self, prefix: Prefix | None, texts: Texts, group: int, clean: Tensor) -> tuple[Denoised, Tensor]:
        chance = torch.randn(len(clean), device=self.device).sigmoid()
        time = self.recipe.shift * chance / (1 + (self.recipe.shift - 1) * chance)
        noise = torch.randn_like(clean)
        noisy = (1 - time[:, None, None]) * clean + time[:, None, None] * noise
        return self.denoise(prefix, texts, group, noisy, time), noise - clean

    def _grounding(self, memory: Suffix, texts: Texts, examples: Sequence[Example], group: int, first: int) -> Tensor:
        """Mean cross-entropy between where marked words look and where their objects are; ViT rows begin at `first`."""
        covers = torch.stack([one.labels.cover for one in examples])  # [B, 64, K]
        covers = covers / covers.sum(1, keepdim=True).clamp(min=1e-6)
        loss = torch.zeros((), device=self.device)
        for layer, marks in ((self.recipe.ground_nouns, texts.nouns), (self.recipe.ground_finals, texts.finals)):
            if not marks:
                continue
            sentence = torch.tensor([mark[0] for mark in marks], device=self.device)
            row = torch.tensor([mark[1] for mark in marks], device=self.device)
            chosen = torch.zeros(len(marks), covers.shape[2])
            for index, (_, _, objects) in enumerate(marks):
                chosen[index, list(objects)] = 1 / len(objects)
            where = (covers[sentence // group] @ chosen.to(self.device)[..., None]).squeeze(2)  # [M, 64]
            attended = memory.attended[layer][sentence, row, first : first + where.shape[1]]
            loss = loss - (where * attended).sum(-1).mean()
        return loss


def _later(rows: int, device: torch.device) -> Tensor:
    return torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1)


def total(losses: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """The sum that is learnt from."""
    weights = {
        "answer": 1.0,
        "flow": recipe.flow,
        "caption": 0.3 * recipe.flow,
        "kind": recipe.dense,
        "color": recipe.dense,
        "extreme": 0.5 * recipe.dense,
        "place": recipe.dense,
        "foreseen_kind": 0.5 * recipe.foresight,
        "foreseen_color": 0.5 * recipe.foresight,
        "foreseen_place": recipe.foresight,
        "ground_question": recipe.grounding,
        "ground_edit": recipe.grounding,
        "ground_cells": recipe.grounding,
    }
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()
