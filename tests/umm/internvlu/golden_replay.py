"""Replays one recorded scenario of the published code, comparing everything on the way.

Prompts, encoders, prefill, DiT, solver and decoder are ours as they are. Where the published code has defects that
ours has not (padding, merging across rows, anchors of text mode, positions after a reduction, a cut thought), their
product is handed in: `published` makes it from public functions.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from g2tr_core.generation.flow import Branches, denoise
from g2tr_core.generation.guidance import damped
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.generation.solvers import MultistepDPM
from g2tr_core.nn.text_writer import TextWriter
from g2tr_core.reduction import Reduction
from g2tr_core.run import Run
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.internvlu.positions import behind, context_positions, latent_positions
from g2tr_core.umm.internvlu.prefix import InternVLUReading, PromptPrefix, PromptStates, turn_with
from g2tr_core.umm.internvlu.preprocess import latent_grid_for
from g2tr_core.umm.internvlu.prompts import NOTHING, SYSTEM, Task, no_text_turn, render
from g2tr_core.umm.internvlu.vae import to_pixels
from g2tr_core.umm.reading import EncodedInputs, EncodedPicture
from tests.umm.internvlu.golden_cases import FEATURES, FLOW, HIDDEN, SCORES, Case, close
from tests.umm.internvlu.published import Pack, clip_pixels, cut_thought, padded_latents, reduce_pack


class Replay:
    """Runs a scenario on a model and holds the recorded tensors against it."""

    def __init__(self, case: Case, model: InternVLU) -> None:
        self.case, self.record, self.recorded = case, case.record, case.load()
        self.model = copy(model)
        self.model.network = copy(model.network)  # a reduced scenario has the published positions
        self.model.config = self.model.network.config = replace(model.config, kept_positions="text")
        self.vlm, self.words, self.run_ = model.network.vlm, model.words, Run(model.device)
        self.prefiller = self.model.prefiller(self.run_)
        self.checked: set[str] = set()
        self.prompts = self._listed(self.record["prompt"])
        images = self.record["image"]
        images = images if isinstance(images, list) else [images] * len(self.prompts)
        self.images = [[] if entry is None else self._listed(entry) for entry in images]
        self.umm = self.record["umm_kwargs"] if self.record["umm_kwargs"].get("umm_vae_guided_prune") else None
        self.mode = self.record["mode"]
        self.task: Task = "answer" if self.mode == "text" else "edit" if any(self.images) else "imagine"

    @staticmethod
    def _listed(value) -> list:
        return value if isinstance(value, list) else [value]

    def check(self, name: str, ours, tolerance: float = 0.0) -> None:
        """Compare with a recorded tensor, if it was recorded."""
        if name in self.recorded:
            close(torch.as_tensor(ours), self.recorded[name], f"{self.case.name} {name}", tolerance)
            self.checked.add(name)

    def check_valid(self, name: str, mask_name: str, rows: list, tolerance: float = 0.0) -> None:
        """Compare the rows of a padded tensor [R, n, ...] with ours, each without its padding."""
        if name not in self.recorded:
            return
        mask = self.recorded[mask_name].bool()
        assert len(rows) == len(mask)
        for index, ours in enumerate(rows):
            recorded = self.recorded[name][index][mask[index]]
            close(torch.as_tensor(ours), recorded, f"{self.case.name} {name} row {index}", tolerance)
        self.checked |= {name, mask_name}

    # --- running -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> None:
        """Run the scenario and compare everything."""
        self.encodings = [self.model.encode([self._image(key) for key in keys]) for keys in self.images]
        pictures = [picture for encoding in self.encodings for picture in encoding.pictures]
        if "vit_features" in self.recorded:
            copies = len(self.recorded["vit_features"]) // len(pictures)
            self.check("vit_features", torch.stack([p.features for p in pictures] * copies), FEATURES)
        if self.mode != "image":
            self._text_stage(pictures)
        if self.mode != "text":
            self._image_stage(pictures)

    def _image(self, key: str) -> Path:
        return next((self.case.root / "internvlu" / "inputs").glob(f"{key}_*"))

    def _readings(self, pack: Pack | None, first: int = 0) -> list[InternVLUReading]:
        """One a prompt; reduced pictures come from the pack, from index `first` on."""
        readings, index = [], first
        for encoding in self.encodings:
            count = len(encoding.pictures)
            reduced = [None] * count if pack is None else pack.reduced[index : index + count]
            index += count
            readings.append(self._reading(encoding, reduced))
        return readings

    def _reading(self, encoding: EncodedInputs, reduced: list) -> InternVLUReading:
        parts = [p.features if r is None else r.features for p, r in zip(encoding.pictures, reduced, strict=True)]
        visual = torch.cat(parts) if parts else self.model.blank().visual
        return InternVLUReading(encoding, Reduction(keep_ratio=1.0), tuple(reduced), visual=visual)

    def _reduced(self, stage: int, pictures: list[EncodedPicture], latents: list) -> Pack | None:
        if self.umm is None or not pictures:
            return None
        pack = reduce_pack(self.model, pictures, latents, self.umm)
        prefix, tokens = f"prune{stage}", self.model.config.visual_tokens
        for index, anchors in enumerate(pack.anchors):
            self.check(f"{prefix}.vae_anchor.{index}", anchors, FEATURES)
        dropped = sorted(set(range(len(pack.features))) - set(pack.keep.tolist()))
        self.check(f"{prefix}.vit_features_packed", pack.features, FEATURES)
        self.check(f"{prefix}.token_scores", pack.scores, SCORES)
        self.check(f"{prefix}.keep_indices", pack.keep)
        self.check(f"{prefix}.merged", pack.merged, FEATURES)
        self.check(f"{prefix}.dropped_indices", dropped)
        self.check(f"{prefix}.merge_target", torch.searchsorted(pack.keep, pack.assignment[dropped]))
        self.check(f"{prefix}.cu_seqlens", [index * tokens for index in range(len(pictures) + 1)])
        return pack

    # --- text --------------------------------------------------------------------------------------------------------

    def _text_stage(self, pictures: list[EncodedPicture]) -> None:
        pack = self._reduced(0, pictures, [self.model.vae.encode(clip_pixels(p.prepared.tile)) for p in pictures])
        readings = self._readings(pack)
        plain = [self.prefiller.ids(r, self.task, t) for r, t in zip(self._readings(None), self.prompts, strict=True)]
        prompts = [self.prefiller.ids(r, self.task, t) for r, t in zip(readings, self.prompts, strict=True)]
        if self.mode == "text":
            self.check_valid("input_ids", "attention_mask", plain)
        self.check_valid("prune0.input_ids", "prune0.attention_mask", prompts)
        self.check_valid("prefill.input_ids", "prefill.attention_mask", prompts)
        positions = [list(range(len(ids))) for ids in prompts]
        self.check_valid("prefill.position_ids", "prefill.attention_mask", positions)
        embedded = [self.vlm.embed(i, r.visual, self.words.visual) for i, r in zip(prompts, readings, strict=True)]
        self.check_valid("prefill.inputs_embeds", "prefill.attention_mask", embedded, FEATURES)
        rows = [self.prefiller.prompt(r, self.task, i) for r, i in zip(readings, prompts, strict=True)]
        width = self.model.config.hidden_size
        hidden = [row.states[:, :width] for row in rows]
        self.check_valid("prefill.hidden_last_norm", "prefill.attention_mask", hidden, HIDDEN)
        self.check_valid(
            "prefill.logits",
            "prefill.attention_mask",
            [self.vlm.language_model.logits(states) for states in hidden],
            HIDDEN,
        )
        self._check_writing(rows)

    def _check_writing(self, rows: list[PromptPrefix]) -> None:
        """Greedy tokens, step by step, but for rows that the published code padded on the right: it loses them."""
        limit = self.record["kwargs"]["max_new_tokens"]
        whole = self.recorded["prefill.attention_mask"][:, -1].bool().tolist()
        self.written = []
        for index, row in enumerate(rows):
            recorded = self.recorded["generated_ids"][index].tolist()
            ours = self.prefiller.decoded([row], [Decoding(max_tokens=limit)], "decode")[0]
            self.written.append(ours)
            if not whole[index]:
                assert self.umm is not None, "only a reduction pads on the right"
                continue
            end = next((place for place, token in enumerate(recorded) if token in self.words.ends), len(recorded))
            assert ours == recorded[:end], f"{self.case.name} generated_ids row {index}"
            assert self.words.text(ours) == self.record["generated_text"][index]
            logits = [self.vlm.language_model.logits(row.last)]
            step = TextWriter(self.vlm.language_model, row.prefix, len(recorded))
            for token in recorded[: min(end, len(recorded) - 1)]:
                logits.append(step(torch.tensor([token])))
            steps = self.recorded["step_logits"][index, : len(logits)]
            close(torch.stack(logits), steps, f"{self.case.name} step_logits row {index}", HIDDEN)
            if "prefill.logits_last_position" in self.recorded:
                last = self.recorded["prefill.logits_last_position"][index]
                close(logits[0], last, f"{self.case.name} logits_last_position row {index}", HIDDEN)
        self.checked |= {"generated_ids", "step_logits", "prefill.logits_last_position"}

    # --- pictures ----------------------------------------------------------------------------------------------------

    def _image_stage(self, pictures: list[EncodedPicture]) -> None:
        latents = padded_latents(self.model, pictures) if pictures else []
        self.check("cond_latents", torch.stack(latents * 2) if latents else torch.empty(0), FEATURES)
        pack = self._reduced(0 if self.mode == "image" else 1, pictures * 2, latents * 2)
        for picture, latent in zip(pictures, latents, strict=True):
            height, width = (side // 8 for side in picture.prepared.vae_pixels.shape[1:])
            picture.latent = latent[:, :height, :width]
        shown = [self._readings(pack), self._readings(pack, len(pictures))]
        nothing = [self.model.blank() for _ in self.prompts]
        self.conditions, ids, plain = [], [], []
        for kind, readings in enumerate((*shown, nothing)):
            for index, reading in enumerate(readings):
                plain.append(self._ids(kind, index, reading, reduced=False))
                ids.append(self._ids(kind, index, reading, reduced=True))
                row = PromptPrefix.empty(self.vlm, len(ids[-1]), self.model.device)
                row = row.extended(self.vlm, self.words, ids[-1], reading.visual)
                of = [picture.latent for picture in reading.encoding.pictures]
                self.conditions.append(PromptStates.of(row, self.words, reading.kept, of))
        self.check_valid("input_ids", "attention_mask", plain)
        stage = 0 if self.mode == "image" else 1
        self.check_valid(f"prune{stage}.input_ids", f"prune{stage}.attention_mask", ids)
        self.check_valid("vlm.input_ids_after_prune", "vlm.attention_mask_after_prune", ids)
        self._check_conditions()
        self._check_generation()

    def _ids(self, kind: int, index: int, reading: InternVLUReading, *, reduced: bool) -> tuple[int, ...]:
        """A row's tokens: the full prompt, without text, or nothing; in full or with what the reduction left."""
        full = [self.model.config.visual_tokens] * len(reading.encoding.pictures)
        counts = [len(kept) for kept in reading.kept] if reduced else full
        said = turn_with(reading.encoding, self.prompts[index]) if kind == 0 else no_text_turn(len(counts))
        turn = NOTHING if kind == 2 else said
        prompt = self.words.ids(render(SYSTEM[self.task], turn, counts, opens_image=False, written=kind == 0))
        if kind == 0 and self.mode == "text_image":
            # The published code lets the model see the left padding of its first stage, and cuts the thought short.
            pads = (self.words.tokenizer.pad_token_id,) * (self._first_stage_length() - self._length(0, index))
            written = [*self.written[index], *sorted(self.words.ends)[:1]]
            limited = len(self.written[index]) == self.record["kwargs"]["max_new_tokens"]
            prompt = (*pads, *prompt, *cut_thought(self.written[index] if limited else written, self.words.ends))
        return (*prompt, self.words.start)

    def _length(self, kind: int, index: int) -> int:
        count = len(self.images[index])
        said = turn_with(self.encodings[index], self.prompts[index]) if kind == 0 else no_text_turn(count)
        turn, shown = (NOTHING, 0) if kind == 2 else (said, count)
        tokens = [self.model.config.visual_tokens] * shown
        return len(self.words.ids(render(SYSTEM[self.task], turn, tokens, opens_image=False, written=kind == 0)))

    def _first_stage_length(self) -> int:
        return max(self._length(kind, index) for kind in range(3) for index in range(len(self.prompts)))

    def _check_conditions(self) -> None:
        config, kwargs = self.model.config, self.record["kwargs"]
        self.size = (kwargs["width"], kwargs["height"])
        self.grid = latent_grid_for(*self.size, config)
        grids, places, longest = [], [], max(len(condition.states) for condition in self.conditions)
        padding = torch.zeros(len(self.conditions), longest, dtype=torch.uint8)
        for index, condition in enumerate(self.conditions):
            name = "decoder_in"
            self.check(f"{name}.hidden_states.{index}", condition.states, HIDDEN)
            self.check(f"{name}.image_token_mask.{index}", [int(visual) for visual in condition.visual])
            sides = [[1, *config.visual_grid]] * len(condition.kept)
            self.check(f"{name}.image_fhw_cond.{index}", torch.tensor(sides).reshape(-1, 3))
            clean = [[1, *latent.shape[1:]] for latent in condition.latents]
            self.check(f"{name}.image_grid_thw_gen_cond.{index}", torch.tensor(clean).reshape(-1, 3))
            grids.append([1, *self.grid])
            padding[index, : len(condition.states)] = 1
            halves = [(h // 2, w // 2) for h, w in (self.grid, *(latent.shape[1:] for latent in condition.latents))]
            of_latents = latent_positions(halves)
            kept = [None if len(k) < config.visual_tokens else k for k in condition.kept]
            context = context_positions(
                behind(of_latents), condition.visual, kept, config.visual_grid, config.condition_scale
            )
            places += [of_latents, context]
        self.check("decoder_in.image_grid_thw_gen", grids)
        self.check("pos3d.first_step", torch.cat(places))
        recorded = self.recorded.get("decoder_in.padded_attention_mask")
        if recorded is not None:
            assert recorded.bool().sum(1).tolist() == padding.sum(1).tolist()
            self.checked.add("decoder_in.padded_attention_mask")

    def _check_generation(self) -> None:
        kwargs, count, thinks = self.record["kwargs"], len(self.prompts), self.mode == "text_image"
        scales = Guidance(
            text_scale=kwargs.get("all_cfg_scale", 3.5 if thinks else 4.5),
            image_scale=kwargs.get("part_cfg_scale", 1.5 if thinks else 2.0),
        )
        sampling = Sampling(kwargs.get("num_inference_steps", 20), guidance=scales, seed=kwargs["seed"])
        shape = (count, self.model.config.latent_channels, *self.grid)
        noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(kwargs["seed"]))
        self.check("noise", noise)
        times = MultistepDPM(sampling).times[:-1]
        self.check("timesteps", (1000 * times).floor())
        outputs, guided, after, finals, decoded = {}, [], [], [], []
        for index in range(count):
            triple = [self.conditions[index + kind * count] for kind in range(3)]
            recorder = Recorder(self.model, triple)
            final = recorder.generate(self.grid, sampling, noise[index])
            for kind in range(3):
                outputs[index + kind * count] = recorder.first[kind]
            guided.append(damped(*recorder.first.split(1), scales, float(times[0]))[0])
            steps = [recorder.seen[step + 1] if step + 1 < len(recorder.seen) else final for step in self._steps()]
            after.append(torch.stack(steps))
            finals.append(final)
            decoded.append(self.model.vae.decode(final))
            self._check_picture(index, decoded[-1])
        self.check("model_output.step0", torch.stack([outputs[row] for row in sorted(outputs)]), FLOW)
        self.check("cfg_output.step0", torch.stack(guided), FLOW)
        self.check("latents_after_step", torch.stack(after, dim=1), FLOW)
        self.check("latents_final", torch.stack(finals), FLOW)
        self.check("decoded", torch.stack(decoded), FLOW)

    def _steps(self) -> list[int]:
        return self.record["latents_after_step_index"]

    def _check_picture(self, index: int, decoded: torch.Tensor) -> None:
        path = self.case.tensors.with_suffix(f".{index}.png")
        if path.is_file():
            pixels = to_pixels(decoded, self.size)
            ours = (pixels * 255).to(torch.uint8).numpy().astype(int)
            assert np.abs(ours - np.asarray(Image.open(path)).astype(int)).max() <= 1, f"{self.case.name} {path.name}"


class Recorder:
    """Denoises beside three prompts and keeps what passes by."""

    def __init__(self, model: InternVLU, states: list[PromptStates]) -> None:
        self.model, self.states = model, states
        self.compute_dtype = model.compute_dtype
        self.first: torch.Tensor | None = None
        self.seen: list[torch.Tensor] = []

    def generate(self, grid: tuple[int, int], sampling: Sampling, noise: torch.Tensor) -> torch.Tensor:
        """The final latent; `seen` are the latents before each step, `first` the branches' first velocities."""
        dit = self.model.network.generation_decoder.decoder
        contexts = tuple(states.embedded(dit, self.model.config, grid) for states in self.states)
        self.denoiser = self.model.denoiser(grid)
        solver, run = MultistepDPM(sampling), Run(self.model.device)
        return denoise(self, noise[None], Branches(contexts, 1, 2), sampling, damped, solver, run)[0]

    def forward(self, x, t, context, options=None) -> torch.Tensor:
        velocities = self.denoiser.forward(x, t, context, options)
        self.seen.append(x[0])
        if self.first is None:
            self.first = velocities
        return velocities
