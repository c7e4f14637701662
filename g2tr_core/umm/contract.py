"""What every unified multimodal model offers, and what a model says of itself to offer it.

A model reads pictures once (`read`), and the reading then serves any number of questions (`answer`), instructions
(`edit`) and seeds. Command, nodes and experiments know models only through this page. What all models do alike stands
here; a model fills in what is abstract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from .. import checks
from ..checkpoints.stored import check_device
from ..checkpoints.tokenizer import encode
from ..errors import SettingsError
from ..generation.flow import Denoiser, denoise
from ..generation.guidance import Rule
from ..generation.settings import Decoding, Sampling
from ..generation.solvers import SolverName, solver
from ..generation.step_cache import StepCache
from ..nn.attention import weight_channels
from ..nn.sizes import DecoderSizes
from ..nn.text_writer import TextWriter
from ..reduction import Reduced, Reduction
from ..reduction.checks import check_dense
from ..report import Change, DecoderCost, PrefilledBlock, Report, StepCost
from ..run import Progress, Run, check_finite, inference
from .deferred import Deferred
from .memory_estimate import MemoryEstimate
from .prompted import Choice, Conditioned, Thought, Written
from .pruning import in_decoder
from .reading import (
    EncodedInputs,
    EncodedPicture,
    Item,
    Prepared,
    Reading,
    reduce_pictures,
    token_priority,
)
from .registry import Facts, ImageTask, LatentSpace, Purpose, Size, SizeRange
from .values import Answer, GeneratedImage, Grid, Input, Likelihood, Source, scaled_note

if TYPE_CHECKING:
    from typing_extensions import Self

R = TypeVar("R", bound=Reading)
C = TypeVar("C")
V = TypeVar("V", bound=nn.Module)

MOST_TOGETHER = 1024  # answers


class UnifiedModel(ABC, Generic[R, C, V]):
    """A model that reads, answers and makes images.

    `R` is its kind of reading, `C` what its denoiser works beside, `V` its autoencoder.

    Attributes:
        config: sizes.
        network: all weights but the autoencoder's.
        tokenizer: of its texts.
        special_tokens: whether words such as `<|im_end|>` in prompts mean what they mean to the model. Off, they are
            words, so that a caption or a file name cannot steer the conversation. May be set at any time.

    Args:
        compute_dtype: of activations and KV caches.
        vae: the autoencoder.
        device: where prefixes and inputs are made, and so where results are. May be set at any time; the weights may
            lie elsewhere where their layers follow their input (`operations` of a memory manager).
    """

    facts: ClassVar[Facts]
    solver: ClassVar[SolverName]
    rule: ClassVar[Rule]
    load_parts: ClassVar[Callable[..., object]]
    estimate: ClassVar[Callable[..., MemoryEstimate]]

    config: DecoderSizes
    network: nn.Module
    tokenizer: Any
    special_tokens: bool = False

    def __init__(self, compute_dtype: torch.dtype, vae: V | Deferred[V], device: torch.device | str) -> None:
        self.compute_dtype, self.device, self._vae = compute_dtype, torch.device(device), vae

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        weights_device: torch.device | str | None = None,
        **options: object,
    ) -> Self:
        """Load a released folder or a single-file repack; see `umm.load`."""
        device = check_device(device, (), runs=weights_device is None)
        parts = cls.load_parts(path, device=device if weights_device is None else weights_device, **options)
        return cls.of(parts, device)

    @classmethod
    @abstractmethod
    def of(cls, parts: object, device: torch.device) -> Self:
        """A model of what `load_parts` loaded."""

    @property
    def vae(self) -> V:
        """The autoencoder. Where `load` was told to defer it, the first use loads it and may raise CheckpointError."""
        return self._vae.value if isinstance(self._vae, Deferred) else self._vae

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def thinking(self) -> Decoding:
        """How the authors let it think."""
        return self.facts.thinking

    @property
    def latent_space(self) -> LatentSpace:
        """What its latents mean."""
        return self.facts.latent_space

    @property
    def cost(self) -> DecoderCost:
        """What one token costs in the language model."""
        channels = weight_channels(self.device, self.compute_dtype, self.config.head_dim)
        return DecoderCost.of(self.config, self.compute_dtype.itemsize, channels)

    @property
    def default_size(self) -> Size:
        """Of a generated picture where nothing else says one."""
        return self.facts.default_size

    @property
    def sides(self) -> SizeRange:
        """What `edit` and `imagine` take as sides."""
        return self.facts.sides

    def default_sampling(self, task: ImageTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task, or those that the checkpoint brings."""
        return (self.facts.thinking_sampling if think else self.facts.sampling)[task]

    @classmethod
    @abstractmethod
    def released(cls) -> nn.Module:
        """The network of the released sizes, without memory; its sizes are its `config`."""

    @property
    def memory_estimate(self) -> MemoryEstimate:
        """How much memory runs need."""
        vae_itemsize = next(self.vae.parameters()).dtype.itemsize
        return type(self).estimate(self.cost.kv_bytes, self.compute_dtype.itemsize, vae_itemsize, self.config)

    # --- what it offers ----------------------------------------------------------------------------------------------

    @inference
    def encode(self, inputs: Input | Sequence[Input]) -> EncodedInputs:
        """Run the ViT over every picture: the part of `read` that no setting changes.

        Args:
            inputs: one picture, or pictures and texts in order.

        Raises:
            ImageError: a picture cannot be read.
            SettingsError: a text holds signs that the model reads as something else.
        """
        run = Run(self.device)
        items: list[Item] = []
        for entry in [inputs] if isinstance(inputs, str) or not isinstance(inputs, Sequence) else inputs:
            if isinstance(entry, str):
                self.check_text("inputs", entry)
                items.append(entry)
                continue
            with run.stage("prepare"):
                prepared = self.prepare(entry)
            with run.stage("vit"):
                features = self.visual_features(prepared)
            items.append(EncodedPicture(prepared, features))
        return EncodedInputs(tuple(items), run.ms)

    @inference
    def read(
        self,
        inputs: Input | Sequence[Input] | EncodedInputs,
        reduction: Reduction | None = None,
        *,
        purpose: Purpose = "answer",
        think: bool = False,
        priority: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
    ) -> R:
        """Read pictures, and texts between them: everything that does not depend on the question.

        Args:
            inputs: as `encode`, or `EncodedInputs` to read again with another reduction.
            reduction: how to reduce visual tokens; None keeps all of them.
            purpose: what to prefill for; the other purpose is prefilled when it is first asked for.
            think: prefill for an answer or edit that thinks first.
            priority: one mask a picture or None, [H, W] of any size, from -1 (sacrifice) to +1 (protect).
            progress: told after every picture, as stage `read`.

        Raises:
            ImageError, SettingsError: bad pictures or settings.
        """
        checks.one_of("purpose", purpose, ("answer", "edit"))
        self.check_thinking(purpose, think)
        checks.kind("reduction", reduction, Reduction, or_none=True)
        encoded = inputs if isinstance(inputs, EncodedInputs) else self.encode(inputs)
        run = Run(self.device, progress)
        reduction = reduction or Reduction(keep_ratio=1.0)
        wanted = token_priority(encoded, priority)
        reduced = reduce_pictures(self, encoded, reduction, wanted, run)
        reading = self.new_reading(encoded, reduction, reduced)
        reading.priority = wanted
        blocks = self.prefill(reading, purpose, think, run)
        step = None
        if purpose == "edit" and blocks and reading.size is not None:  # as far as it is known before the instruction
            step = self.step_cost(reading, "edit", blocks, self.latent_grid(reading.size))
        reading.report = self.report(reading, blocks, run, step=step)
        if encoded is not inputs:
            reading.report.ms = {**encoded.ms, **reading.report.ms}
        if in_decoder(reduction) is not None:
            reading.report.notes.append(
                f"The method {reduction.method} chooses visual tokens by the prompt: every prompt reads them anew."
            )
        reading.report.notes += reading.budget_notes
        reading.report.note_weight_cost(self.cost.weight_flops(blocks), 0 if step is None else step.weight_flops)
        if purpose == "answer":
            reading.report.note_encode_cost()
        return reading

    @inference
    def answer(
        self,
        reading: R,
        question: str,
        *,
        decoding: Decoding | None = None,
        think: bool = False,
        progress: Progress | None = None,
    ) -> Answer:
        """Answer a question about a reading. Costs the question's own tokens and the answer's.

        Args:
            reading: what `read` returned.
            question: a text; what an empty one means is up to the model.
            decoding: length, temperature, seed.
            think: reason first; the reasoning is handed back apart from the answer.
            progress: told after every token, as stage `decode`.

        Raises:
            SettingsError: the question is not a text, or the model cannot think before an answer.
        """
        return self.answers([(reading, question)], decoding=decoding, think=think, progress=progress)[0]

    @inference
    def answers(
        self,
        asked: Sequence[tuple[R, str]],
        *,
        decoding: Decoding | Sequence[Decoding] | None = None,
        think: bool = False,
        batch: int | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Answer several questions, about one reading or several, and write the answers together.

        The weights are read once for all tokens of a step, where `answer` reads them for each: that is most of what
        writing costs. Answers are those of `answer` but for rounding, which may turn a word where two are as likely.

        Args:
            asked: readings with their questions.
            decoding: of all, or one each.
            think: as `answer`.
            batch: write so many together, and let every product have as many rows, however many texts there are. Then
                an answer does not depend on what else is asked. None: all together, and as many rows as there are.
            progress: told how long the longest answer is, as stage `decode`, for each batch.

        Raises:
            SettingsError: as `answer`.
        """
        if batch is not None:
            checks.whole("batch", batch, low=1, high=MOST_TOGETHER)
        if decoding is None:
            decoding = Decoding()
        decodings = list(decoding) if isinstance(decoding, Sequence) else [decoding] * len(asked)
        if len(decodings) != len(asked):
            raise SettingsError(
                f"there are {len(decodings)} for {len(asked)} questions", where="decoding", fix="Give one, or one each"
            )
        size = batch or max(1, len(asked))
        return [
            answer
            for start in range(0, len(asked), size)
            for answer in self._answers(
                asked[start : start + size], decodings[start : start + size], think, progress, batch
            )
        ]

    @inference
    def likelihood(self, reading: R, question: str, answer: str) -> Likelihood:
        """How likely an answer is, for benchmarks that choose among given ones.

        Args:
            reading: what `read` returned.
            question: as `answer`.
            answer: what the model would have to say, from its first word on; blanks before it count.

        Raises:
            SettingsError: the question is not a text, or the answer has no tokens.
        """
        self.check_text("question", question)
        self.check_text("answer", answer)
        checks.kind("reading", reading, Reading)
        ids = encode(self.tokenizer, answer, special_tokens=self.special_tokens)
        if not ids:
            raise SettingsError("it is empty", where="answer", fix="Give at least one word")
        logits, writer = self.begin_answer(reading, question, Run(self.device))
        total, greedy = torch.zeros((), device=self.device), torch.ones((), dtype=torch.bool, device=self.device)
        for place, token in enumerate(torch.tensor(ids, device=self.device).split(1)):
            total = total + logits.float().log_softmax(-1)[token[0]]
            greedy = greedy & (logits.argmax() == token[0])
            if place + 1 < len(ids):
                logits = writer(token)
        return Likelihood(float(total), bool(greedy), len(ids))

    @inference
    def edit(
        self,
        reading: R,
        instruction: str,
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> GeneratedImage:
        """Make the picture that a reading becomes as the instruction says.

        Args:
            reading: what `read` returned; with `purpose="edit"` it is prefilled already.
            instruction: a text; empty goes by the pictures alone.
            sampling: steps, guidance, seed; None is `default_sampling`.
            size: (width, height) in pixels, see `sides`; None for the last picture's as the autoencoder sees it.
            think: how to write the plan that the model makes first; None does without.
            noise: [16, h, w] latent to start from instead of the seed's.
            progress: told after every token of thinking, as stage `think`, and after every step, as stage `denoise`.

        Raises:
            SettingsError: a setting is outside its limits.
        """
        return self._generate(reading, "edit", instruction, sampling, size, think, progress, noise=noise)[0]

    @inference
    def imagine(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> GeneratedImage:
        """Make a picture from a text alone; arguments as `edit`, None being `default_size`."""
        return self._generate(self.blank(), "imagine", prompt, sampling, size, think, progress, noise=noise)[0]

    @inference
    def edit_seeds(
        self,
        reading: R,
        instruction: str,
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        think: Decoding | None = None,
        progress: Progress | None = None,
    ) -> list[GeneratedImage]:
        """As `edit`, one picture a seed, denoised together: weights are read once a step for all of them."""
        return self._generate(reading, "edit", instruction, sampling, size, think, progress, seeds=seeds)

    @inference
    def imagine_seeds(
        self,
        prompt: str,
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        think: Decoding | None = None,
        progress: Progress | None = None,
    ) -> list[GeneratedImage]:
        """As `imagine`, one picture a seed, denoised together."""
        return self._generate(self.blank(), "imagine", prompt, sampling, size, think, progress, seeds=seeds)

    def blank(self) -> R:
        """A reading of nothing, behind which a picture is imagined."""
        return self.new_reading(EncodedInputs(()), Reduction(keep_ratio=1.0), ())

    def latent_of(self, picture: EncodedPicture, run: Run) -> Tensor:
        """The picture's latent [16, H/8, W/8], encoded when first needed: for anchors and editing alike."""
        if picture.latent is None:
            with run.stage("vae_encode"):
                picture.latent = self.encode_latent(picture.prepared.vae_pixels.to(self.device))
        return picture.latent

    def report(
        self,
        reading: R,
        blocks: Sequence[PrefilledBlock],
        run: Run,
        visual_tokens: Change | None = None,
        step: StepCost | None = None,
    ) -> Report:
        """What a result behind these blocks of the main context cost."""
        return Report.of(self.cost, blocks, visual_tokens or reading.visual_tokens, run.ms, step)

    # --- what a model says of itself ---------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, picture: Source) -> Prepared:
        """One picture for both encoders."""

    @abstractmethod
    def visual_features(self, prepared: Prepared) -> Tensor:
        """Run the ViT: [N, C] visual tokens after the connector."""

    @abstractmethod
    def vit_attention(self, prepared: Prepared, depth: float = 1.0) -> Tensor:
        """What each visual token receives of attention in the ViT, [N] fp32. Runs the ViT, for methods that ask.

        Args:
            prepared: one picture.
            depth: which layer's attention, as a share of the ViT's layers: the last, or one at a quarter of them.
        """

    @abstractmethod
    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells at the width of visual tokens: latent [16, h, w] -> [M, C] and their grid."""

    @abstractmethod
    def new_reading(self, encoded: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...]) -> R:
        """A reading with nothing prefilled yet."""

    @abstractmethod
    def prefill(self, reading: R, purpose: Purpose, think: bool, run: Run) -> Sequence[PrefilledBlock]:
        """Prefill what every prompt of a purpose shares; the blocks of the main context."""

    @abstractmethod
    def write(
        self,
        asked: Sequence[tuple[R, str]],
        decodings: Sequence[Decoding],
        think: bool,
        run: Run,
        batch: int | None = None,
    ) -> list[Written]:
        """Prefill questions, each behind its reading, and decode the answers together; `batch` as `TextWriters`."""

    @abstractmethod
    def begin_answer(self, reading: R, question: str, run: Run) -> tuple[Tensor, TextWriter]:
        """Prefill a question: the logits [V] of the answer's first token, and what takes the tokens one by one."""

    @abstractmethod
    def condition(
        self,
        reading: R,
        task: ImageTask,
        text: str,
        sampling: Sampling,
        think: Decoding | Thought | None,
        grid: Grid,
        run: Run,
    ) -> Conditioned[C]:
        """Prefill an instruction or prompt, think if asked to, and set up what guidance compares.

        `think` says how to think, or what was thought already; `grid` is (h, w) of the latent that will be made.
        """

    @abstractmethod
    def denoiser(self, grid: Grid) -> Denoiser[C]:
        """The velocity of latents of (h, w)."""

    @abstractmethod
    def step_cost(self, reading: R, task: ImageTask, blocks: Sequence[PrefilledBlock], grid: Grid) -> StepCost:
        """What one evaluation of the denoiser costs beside these blocks of the main context, for a latent of (h, w)."""

    @abstractmethod
    def latent_grid(self, size: Size) -> Grid:
        """(h, w) of the latent of a picture of this size; raises SettingsError."""

    @abstractmethod
    def starting_noise(self, seed: int, grid: Grid) -> Tensor:
        """Standard normal noise [16, h, w] fp32 on the CPU, the same on every machine."""

    @abstractmethod
    def encode_latent(self, pixels: Tensor) -> Tensor:
        """The autoencoder: [3, H, W] of -1 … 1 -> [16, H/8, W/8] fp32."""

    @abstractmethod
    def decode_latent(self, latent: Tensor, notes: list[str] | None = None) -> Tensor:
        """The autoencoder: [16, h, w] -> [3, 8h, 8w] fp32, about -1 … 1; adds to `notes` what a report should say."""

    @abstractmethod
    def pixels(self, decoded: Tensor, size: Size) -> Tensor:
        """What the autoencoder made, [3, H, W] -> [h, w, 3] of 0 … 1."""

    def check_text(self, field: str, text: str) -> None:
        """Refuse what is no text for this model."""
        checks.text(field, text)

    def check_room(self, position: int, tokens: int) -> None:
        """Refuse `tokens` tokens of text behind `position` positions that are taken, if the decoder has no more.

        Raises:
            SettingsError: they are too many.
        """
        most = self.config.max_positions
        if position + tokens > most:
            raise SettingsError(
                f"a text of {tokens:,} tokens is too long: {self.facts.name} has {most:,} positions"
                + (f", and {position:,} of them are taken" if position else ""),
                fix="Shorten the text to some thousand words",
            )

    def check_thinking(self, purpose: Purpose, think: bool) -> None:
        """Refuse to think where the model was not trained to."""
        checks.flag("think", think)
        if think and purpose not in self.facts.thinks_before:
            raise SettingsError(
                f"{self.facts.name} does not reason before an {purpose}",
                where="think",
                fix="Turn it off; it can reason before it makes an image",
            )

    def _answers(
        self,
        asked: Sequence[tuple[R, str]],
        decodings: Sequence[Decoding],
        think: bool,
        progress: Progress | None,
        batch: int | None = None,
    ) -> list[Answer]:
        """Every answer goes this way."""
        self.check_thinking("answer", think)
        for (reading, question), decoding in zip(asked, decodings, strict=True):
            self.check_text("question", question)
            checks.kind("reading", reading, Reading)
            checks.kind("decoding", decoding, Decoding)
        run = Run(self.device, progress)
        answers = []
        for (reading, _), written in zip(asked, self.write(asked, decodings, think, run, batch), strict=True):
            reading.give_back()
            choice = written.choice or Choice(reading.visual_tokens)
            report = self.report(reading, written.blocks, run, choice.visual_tokens)
            if len(asked) > 1:
                report.notes.append(f"{len(asked)} answers were written together, and times are those of all.")
            answers.append(Answer(written.text, written.thinking, report, choice.kept))
        return answers

    def _generate(
        self,
        reading: R,
        task: ImageTask,
        text: str,
        sampling: Sampling | None,
        size: Size | None,
        think: Decoding | None,
        progress: Progress | None,
        *,
        seeds: Sequence[int] | None = None,
        noise: Tensor | None = None,
    ) -> list[GeneratedImage]:
        """Every image goes this way: condition, denoise, decode."""
        self.check_text("instruction" if task == "edit" else "prompt", text)
        checks.kind("reading", reading, Reading)
        checks.kind("sampling", sampling, Sampling, or_none=True)
        checks.kind("think", think, Decoding, or_none=True)
        if noise is not None:
            check_dense("noise", noise)
        size = checks.size("size", reading.size or self.default_size if size is None else size)
        grid, run = self.latent_grid(size), Run(self.device, progress)
        sampling = sampling or self.default_sampling(task, think=think is not None)
        start = self._start(noise, [sampling.seed] if seeds is None else seeds, grid).to(self.device)
        conditioned = self.condition(reading, task, text, sampling, think, grid, run)
        with run.stage("denoise"):
            steps = solver(self.solver, sampling, self.device)
            cache = StepCache(sampling.caching, steps.times.tolist())
            rule, branches = type(self).rule, conditioned.branches
            latents = denoise(self.denoiser(grid), start, branches, sampling, rule, steps, run, cache)
        notes: list[str] = []
        with run.stage("vae_decode"):
            decoded = [self.decode_latent(latent, notes) for latent in latents]
        for picture in decoded:
            check_finite(picture, "picture", self.compute_dtype)
        step = self.step_cost(reading, task, conditioned.blocks, grid)
        choice = conditioned.choice or Choice(reading.visual_tokens)
        report = self.report(reading, conditioned.blocks, run, choice.visual_tokens, step)
        report.evaluations = cache.evaluations
        made_at = decoded[0].shape[2], decoded[0].shape[1]
        report.notes += [*conditioned.notes, *dict.fromkeys(notes), *_size_notes(size, made_at, reading.size)]
        return [
            GeneratedImage(self.pixels(picture, size), latent, conditioned.thought.text, report, choice.kept)
            for picture, latent in zip(decoded, latents, strict=True)
        ]

    def _start(self, noise: Tensor | None, seeds: Sequence[int], grid: Grid) -> Tensor:
        """[B, 16, h, w] to start from."""
        if not seeds:
            raise SettingsError("there is none", where="seeds", fix="Give at least one")
        for seed in seeds:
            checks.seed(seed)
        if noise is None:
            return torch.stack([self.starting_noise(seed, grid) for seed in seeds])
        shape = self.starting_noise(0, grid).shape
        if noise.shape != shape:
            raise SettingsError(f"is {list(noise.shape)}", where="noise", fix=f"Give {list(shape)} for this size")
        return noise.unsqueeze(0)


def _size_notes(size: Size, made_at: Size, read_at: Size | None) -> list[str]:
    """What a report says of the size of a picture: whether it was scaled, and whether an edit changed it."""
    notes = [] if size == made_at else [scaled_note(made_at, size)]
    if read_at is not None and made_at != read_at:
        notes.append(
            f"The picture was read at {read_at[0]}x{read_at[1]} and edited at {made_at[0]}x{made_at[1]}. Edits keep "
            "most of a picture at the size at which it was read."
        )
    return notes
