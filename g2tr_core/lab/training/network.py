"""Second stage: ViT, connector and both experts of the decoder, all from the beginning and all at once."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ...errors import CheckpointError
from ...umm.bagel.network import BagelNetwork, SpecialTokens
from ...umm.bagel.tokenizer import SPECIAL
from ...umm.bagel.vae import Autoencoder
from ..world.splits import Split
from .autoencoder import BLOCKS, GROUPS, WIDTHS
from .evaluate import evaluate
from .examples import Factory, Pool
from .losses import Heads, Learner, total
from .optimiser import MasterWeights, schedule, weights_in
from .recipe import CONFIG, Recipe
from .texts import Writer
from .tokenizer import write_tokenizer

TEST_SCENES = 256
LOG_EVERY, SAVE_EVERY, TEST_EVERY = 20.0, 120.0, 300.0  # seconds
DECAY = 0.5  # share of the run in which learning rates fall
THROWN_AWAY = ("heads.", "foresight.")  # prefixes of weights that are not shipped

logger = logging.getLogger(__name__)


def train_network(folder: Path, autoencoder: Path, *, minutes: float, device: torch.device, seed: int = 0) -> None:
    """Train until the time is over, going on from what lies in `folder`.

    Writes `state.safetensors` (and `plateau/`, the state before the learning rates began to fall, from which a longer
    run can go on), `log.txt`, and `curves.csv` with losses and scores.

    Args:
        folder: of this stage.
        autoencoder: `ae.safetensors` of the first stage.
        minutes: of training in all, earlier runs included.
        device: where to train.
        seed: of weights, scenes, questions, edits, noise and times.
    """
    recipe = Recipe()
    torch.manual_seed(seed)
    learner = _learner(folder, device, recipe)
    names = learnable(learner)
    weights = MasterWeights(names, _is_matrix, muon=recipe.muon, adam=recipe.adam)
    progress = weights.load(folder, seed)
    spent, step = progress.get("seconds", 0.0), progress.get("step", 0)
    logger.info("%.2f million parameters, going on at step %d", sum(w.numel() for w in names.values()) / 1e6, step)
    vae = load_for_training(autoencoder, device)
    lessons = Lessons(recipe, vae, seed + step, device)
    test = Test(recipe, vae, device)
    torch.manual_seed(seed + step)
    whole = 60 * minutes
    begun = time.perf_counter()
    due = {"log": begun + LOG_EVERY, "save": begun + SAVE_EVERY, "test": begun + TEST_EVERY}
    while spent < whole:
        losses = lessons.sight(learner) if spent < recipe.warm_up else lessons.losses(learner)
        total(losses, recipe).backward()
        done = spent / whole
        norm = weights.step(schedule(done, decay=DECAY))
        step += 1
        now = time.perf_counter()
        spent, begun = spent + now - begun, now
        state = {"seconds": spent, "step": step, "seed": seed}
        if done < 1 - DECAY <= spent / whole:
            weights.save(folder / "plateau", state)
        values = {name: loss.detach() for name, loss in losses.items()}
        if now > due["log"]:
            _log("step %d, %.0f s: %s", step, spent, values)
            due["log"] = now + LOG_EVERY
        if now > due["save"] or spent >= whole:
            weights.save(folder, state)
            due["save"] = now + SAVE_EVERY
        if now > due["test"] or spent >= whole:
            scores = evaluate(learner, test.examples, test.questions)
            _log("step %d, %.0f s, test: %s", step, spent, scores)
            add_row(folder / "curves.csv", state | values | scores)
            begun = time.perf_counter()
            due["test"] = begun + TEST_EVERY
    logger.info("done; the last gradient had norm %.2f", norm)


class Lessons:
    """What a step learns from: scenes, questions, edits and captions of the training split."""

    def __init__(self, recipe: Recipe, vae: Autoencoder, seed: int, device: torch.device) -> None:
        self.recipe = recipe
        self.factory = _factory("train", seed, recipe, vae, recipe.edits, device)
        fresh_scenes, fresh_captions = (-(-count // recipe.reuse) for count in (recipe.scenes, recipe.captions))
        self.scenes = Pool(self.factory.examples, 8 * recipe.scenes, fresh_scenes, seed)
        self.captions = Pool(self.factory.captions, 8 * recipe.captions, fresh_captions, seed)

    def sight(self, learner: Learner) -> dict[str, Tensor]:
        """The losses of seeing alone."""
        patches, labels = self.factory.extra_pictures(self.recipe.extra_pictures)
        return learner.heads.losses(learner.encode(patches), labels)

    def losses(self, learner: Learner) -> dict[str, Tensor]:
        """The losses of one step."""
        examples = self.scenes.draw(self.recipe.scenes)
        questions = [self.factory.questions(one.scene, self.recipe.questions) for one in examples]
        _, visual = learner.visual_tokens(examples)
        losses = self.sight(learner)
        losses |= learner.answer_loss(visual, examples, questions)
        losses |= learner.flow_loss(visual, examples)
        return losses | learner.caption_loss(self.captions.draw(self.recipe.captions))


class Test:
    """The same scenes, questions and edits of the development split each time."""

    def __init__(self, recipe: Recipe, vae: Autoencoder, device: torch.device) -> None:
        judge = _factory("dev", 1, recipe, vae, 2, device)
        self.examples = [one for _ in range(TEST_SCENES // 32) for one in judge.examples(32)]
        self.questions = [judge.questions(one.scene, 8) for one in self.examples]


def _factory(split: Split, seed: int, recipe: Recipe, vae: Autoencoder, edits: int, device: torch.device) -> Factory:
    return Factory(split, seed, vae, edits, recipe.edit_weights, recipe.question_weights, device)


def load_for_training(path: Path, device: torch.device) -> Autoencoder:
    """The autoencoder of the first stage, frozen."""
    autoencoder = Autoencoder(WIDTHS, BLOCKS, device, groups=GROUPS)
    try:
        autoencoder.kl.load_state_dict(weights_in(path))
    except RuntimeError as error:
        fix = "Delete it, and run the stage `autoencoder` again"
        raise CheckpointError("these are not the weights of this autoencoder", where=str(path), fix=fix) from error
    autoencoder = autoencoder.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return autoencoder.requires_grad_(False).eval()


def learnable(learner: Learner) -> dict[str, nn.Parameter]:
    """All that learns, by name; what training alone has stands under `THROWN_AWAY`."""
    helps = zip(THROWN_AWAY, (learner.heads, learner.foresight), strict=True)
    named = {f"{prefix}{name}": weight for prefix, help in helps for name, weight in help.named_parameters()}
    return dict(learner.network.named_parameters()) | named


def _learner(folder: Path, device: torch.device, recipe: Recipe) -> Learner:
    write_tokenizer(folder / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    network, tokens = new_network(tokenizer, device, torch.bfloat16)
    heads, foresight = (Heads(network.config.hidden_size).to(device, torch.bfloat16) for _ in range(2))
    return Learner(network, heads, foresight, Writer(tokenizer, tokens, device), recipe)


def new_network(tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype) -> tuple[BagelNetwork, SpecialTokens]:
    """A network that has learnt nothing: sin-cos positions, and every layer begins as nothing."""
    vocabulary = tokenizer.get_vocab()
    tokens = SpecialTokens(**{field: vocabulary[token] for field, token in SPECIAL.items()})
    config = replace(CONFIG, vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64)
    # Not the layers of a network that is loaded, which leave values that a file will bring as they find them.
    network = BagelNetwork(config, tokens, operations=nn, compute_dtype=dtype, device=device)
    with torch.no_grad():
        network.latent_pos_embed.pos_embed.copy_(sinusoids(config.latent_side, config.hidden_size))
        network.vit_pos_embed.pos_embed.copy_(sinusoids(config.vit_side, config.hidden_size))
        network.vit_model.vision_model.embeddings.position_embedding.weight.copy_(
            sinusoids(config.vit_side, config.vit_hidden_size)
        )
        network.language_model.model.embed_tokens.weight.mul_(0.5)
        for name, weight in network.named_parameters():
            if name.endswith(("o_proj.weight", "o_proj_moe_gen.weight", "down_proj.weight", "out_proj.weight")):
                nn.init.zeros_(weight)
        nn.init.zeros_(network.llm2vae.weight)
    return network.to(dtype), tokens


def sinusoids(side: int, width: int) -> Tensor:
    """2-D sin-cos positions [side², width]: a half for the row, a half for the column."""
    rates = 100.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * rates  # [side, width / 4]
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # [side, width / 2]
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def _is_matrix(name: str, weight: Tensor) -> bool:
    """Matrices between hidden states; embeddings, heads and norms are AdamW's."""
    return weight.ndim == 2 and (".layers." in name or name.startswith("connector"))


def _log(line: str, step: int, seconds: float, values: Mapping[str, float | Tensor]) -> None:
    logger.info(line, step, seconds, "  ".join(f"{name} {float(value):.3f}" for name, value in values.items()))


def add_row(path: Path, row: Mapping[str, float | Tensor]) -> None:
    """Add a row to a table of curves; columns may have come or gone since the last one."""
    rows: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]  # not torn
    rows.append({name: f"{float(value):.5g}" for name, value in row.items()})
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list({name: None for one in rows for name in one}))
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(path)
