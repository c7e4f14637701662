"""Replays one recorded scenario of the published code through the public API, comparing everything on the way.

The published code draws autoencoder noise, for the editing context and once more for the anchors; ours takes the
posterior mean once. So the recorded latents are handed in, and the encoder is checked against the recorded noise.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from g2tr_core.generation.sampling import guide
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.nn.kv_cache import Canvas, Context, KVCache
from g2tr_core.reduction import Reduction
from g2tr_core.umm.bagel import generate as generate_module
from g2tr_core.umm.bagel import model as model_module
from g2tr_core.umm.bagel import preprocess
from g2tr_core.umm.bagel.config import ResizeRule
from g2tr_core.umm.bagel.conversation import Conversation
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.bagel.network import Denoiser
from g2tr_core.umm.bagel.prompts import split_thinking
from g2tr_core.umm.bagel.reading import Reading

STAGE = {"atol": 3e-5, "rtol": 1e-5}
STEP = {"atol": 3e-5, "rtol": 1e-4}
FLOW = {"atol": 1e-4, "rtol": 1e-4}


@dataclass(frozen=True)
class Case:
    """One recorded scenario: the record, and the file of its tensors (an identical scenario's, where it has none)."""

    record: dict
    tensors: Path
    root: Path

    @property
    def name(self) -> str:
        return self.record["name"]


def find_cases(root: Path) -> list[Case]:
    """All scenarios of a golden folder `root`/bagel/e2e that have tensors."""
    folder = root / "bagel" / "e2e"
    equal = folder / "_equalities.json"
    aliases = json.loads(equal.read_text()).get("bitwise_identical_aliases", {}) if equal.is_file() else {}
    cases = []
    for path in sorted(folder.glob("[!_]*.json")):
        tensors = next(
            (f for f in (folder / f"{n}.safetensors" for n in (path.stem, aliases.get(path.stem))) if f.is_file()), None
        )
        if tensors is not None:
            cases.append(Case(json.loads(path.read_text()), tensors, root))
    return cases


def close(ours: torch.Tensor, recorded: torch.Tensor, what: str, tolerance: dict = STAGE) -> None:
    """Compare values within a tolerance of the manifest, integers exactly."""
    ours = ours.cpu().reshape(recorded.shape)
    if not recorded.is_floating_point():
        tolerance = {"atol": 0, "rtol": 0}
    torch.testing.assert_close(ours, recorded, **tolerance, msg=lambda text: f"{what}: {text}")


class Replay:
    """Runs a scenario on a model and holds the recorded tensors against it."""

    def __init__(self, case: Case, model: Bagel) -> None:
        self.case, self.record, self.recorded = case, case.record, load_file(case.tensors)
        rules = {f"{kind}_resize": ResizeRule(*self.record[f"{kind}_transform"]) for kind in ("vae", "vit")}
        self.model = copy(model)
        self.model.config = replace(model.config, **rules)
        self.checked: set[str] = set()
        self.blocks: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # kind, decoder input, decoder output
        self.layout: list[tuple[KVCache, int, int, str]] = []  # which rows of which cache each block took
        self.vit_outputs: list[torch.Tensor] = []
        self.step = 0

    def check(self, name: str, ours: torch.Tensor, tolerance: dict = STAGE) -> None:
        """Compare with a recorded tensor, if it was recorded."""
        if name in self.recorded:
            close(ours, self.recorded[name], f"{self.case.name} {name}", tolerance)
            self.checked.add(name)

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the scenario and compare everything."""
        with torch.inference_mode(), self._recording():
            if self.record["events"][0]["op"] == "chat":
                self._answer(self._direct_inputs())
            elif self.record.get("understanding_output"):
                self._answer(self._inputs())
            else:
                self._paint(self._inputs())
        self._check_blocks()

    def _inputs(self) -> list:
        return [self._image(entry[4:]) if entry.startswith("img:") else entry for entry in self.record["inputs"]]

    def _direct_inputs(self) -> list:
        """The chat path skips the autoencoder's resize: our config without it is the ViT's own rule twice."""
        self.model.config = replace(self.model.config, vae_resize=self.model.config.vit_resize)
        return self._inputs()

    def _image(self, key: str) -> Path:
        return next((self.case.root / "bagel" / "inputs").glob(f"img_{key}_*"))

    @property
    def reduction(self) -> Reduction:
        umm = self.record.get("umm") or {}
        return Reduction(
            keep_ratio=umm.get("umm_prune_ratio", 1.0),
            min_tokens=umm.get("umm_min_keep_tokens", 32),
            latent_pool=umm.get("umm_latent_pool", 2),
        )

    def _decoding(self) -> Decoding:
        written = self.record.get("generate_text")
        return Decoding(max_tokens=written["max_length"] - 1 if written else 1)  # N tokens hold N − 1 predictions

    def _answer(self, inputs: list) -> None:
        think = bool(self.record.get("think"))
        question = inputs.pop() if isinstance(inputs[-1], str) else ""
        reading = self.model.read(inputs, self.reduction, think=think)
        self._check_pictures(reading)
        answer = self.model.answer(reading, question, decoding=self._decoding(), think=think)
        written = "".join(self.record["text_output"])
        expected = split_thinking(written) if think else ("", written)
        assert (answer.thinking, answer.text) == expected, self.case.name

    def _paint(self, inputs: list) -> None:
        params, think = self.record["params"], self._decoding() if self.record["think"] else None
        self.sampling = Sampling(
            steps=params["num_timesteps"] - 1,  # they count flow times
            timestep_shift=params["timestep_shift"],
            guidance=Guidance(
                text_scale=params["cfg_text_scale"],
                image_scale=params["cfg_img_scale"],
                interval=tuple(params["cfg_interval"]),
                renorm=params["cfg_renorm_type"],
                renorm_min=params["cfg_renorm_min"],
            ),
        )
        noise = self.recorded["init_noise"]
        self.checked.add("init_noise")
        if any(isinstance(entry, Path) for entry in inputs):
            instruction = inputs.pop() if isinstance(inputs[-1], str) else ""
            reading = self.model.read(inputs, self.reduction, purpose="edit", think=think is not None)
            self._check_pictures(reading)
            painting = self.model.edit(reading, instruction, self.sampling, noise=noise, think=think)
        else:
            height, width = params["image_shapes"]
            painting = self.model.imagine(inputs[0], self.sampling, size=(width, height), noise=noise, think=think)
        if "text_output" in self.record:
            assert painting.thinking == "".join(self.record["text_output"])
        patches = preprocess.patchify(painting.latent, self.model.config.latent_patch)
        self.check("final_latent", patches, FLOW)
        self.check("decode0.in", painting.latent, FLOW)
        self.check("decode0.out", self.model.vae.decode(painting.latent), FLOW)
        ours = np.asarray(painting.image).astype(int)
        images = [self.recorded["image_u8"].numpy()] if "image_u8" in self.recorded else []
        png = self.case.tensors.with_suffix(".png")
        images += [np.asarray(Image.open(png))] if png.is_file() else []
        for image in images:
            assert np.abs(ours - image.astype(int)).max() <= 1, f"{self.case.name}: pixels differ by more than 1"
        self.checked.add("image_u8")

    def _check_pictures(self, reading: Reading) -> None:
        pictures = [event for event in self.record["events"] if event["op"] in ("image", "chat")]
        config = self.model.config
        for event, encoded, reduced in zip(pictures, reading.encoding.pictures, reading.reduced, strict=True):
            prefix, prepared = f"ev{event.get('i', 0)}", encoded.prepared
            positions = preprocess.grid_positions(prepared.vit_grid, config.vit_side)
            self.check(f"{prefix}.vit.packed_vit_tokens", prepared.vit_patches)
            self.check(f"{prefix}.vit.packed_vit_position_ids", positions)
            self.check(f"{prefix}.vae.padded_images", prepared.vae_pixels)
            latent_positions = preprocess.grid_positions(prepared.latent_grid, config.latent_side)
            self.check(f"{prefix}.vae.packed_vae_position_ids", latent_positions)
            self.check(f"{prefix}.vit.connector_out", encoded.features)
            if reduced is not None:
                self.check(f"{prefix}.vit.scores", reduced.scores)
                self.check(f"{prefix}.vit.keep_indices", reduced.keep)
                self.check(f"{prefix}.vit.merged", reduced.features)
                self.check(f"{prefix}.vit.kept_position_ids", positions[reduced.keep])
                ends = torch.tensor([0, len(reduced.keep)])
                self.check(f"{prefix}.vit.new_cu_seqlens", ends.to(torch.int32))

    # --- looking over the model's shoulder ---------------------------------------------------------------------------

    @contextmanager
    def _recording(self):
        """Let the model run as it is, and compare what passes the borders between its parts."""
        model, decoder, replay = self.model, self.model.network.language_model.model, self
        remember, anchors = decoder.remember, model.anchors
        write, paint = model_module.write_tokens, model_module.paint_latent
        pictures = [event for event in self.record["events"] if event["op"] in ("image", "chat")]
        latents = sorted(name for name in self.recorded if re.fullmatch(r"vae_latent\.\d+", name))
        twice = len(latents) == 2 * len(pictures)  # once for the context, once more for the anchors
        encoded = [0]

        def recording_remember(und, gen, positions, memory):
            replay._note_block(und, gen, memory, decoder(und, gen, positions, memory))
            remember(und, gen, positions, memory)  # what runs for real must leave the same rows

        def recorded_encode(pixels):
            index = encoded[0] * (2 if twice else 1)
            encoded[0] += 1
            for again in (index, index + 1) if twice else (index,):
                replay._check_encoder(pixels, again)
            return replay.recorded[f"vae_latent.{index}"][0]

        def recording_anchors(latent, pool):
            if twice:
                latent = replay.recorded[f"vae_latent.{2 * encoded[0] - 1}"][0]
            result = anchors(latent, pool)
            replay.check(f"ev{pictures[encoded[0] - 1].get('i', 0)}.vit.anchors", result[0])
            return result

        def recording_write(network, context, decoding):
            if replay.record.get("understanding_output"):
                replay._check_rows("gen", context)
            yield from write(network, context, decoding)
            replay._check_writing(context)

        def recording_paint(network, conversation, *arguments):
            replay._check_contexts(conversation)
            return paint(network, conversation, *arguments)

        def note_vit(module, arguments, output):
            replay.vit_outputs.append(output)

        class RecordingDenoiser(Denoiser):
            def __call__(self, latent, time, chosen=slice(None)):
                velocities = super().__call__(latent, time, chosen)
                replay._check_step(latent, time, velocities)
                return velocities

        hook = model.network.vit_model.register_forward_hook(note_vit)
        try:
            with (
                patch.object(decoder, "remember", recording_remember),
                patch.object(model.vae, "encode", recorded_encode),
                patch.object(model, "anchors", recording_anchors),
                patch.object(model_module, "write_tokens", recording_write),
                patch.object(model_module, "paint_latent", recording_paint),
                patch.object(generate_module, "Denoiser", RecordingDenoiser),
            ):
                yield
        finally:
            hook.remove()
        for event, output in zip(pictures, self.vit_outputs, strict=True):
            self.check(f"ev{event.get('i', 0)}.vit.vit_out", output)

    def _check_encoder(self, pixels: torch.Tensor, index: int) -> None:
        mean, log_variance = self.model.vae.encode_moments(pixels).chunk(2)
        sample = mean
        if self.record["vae_sample"]:
            sample = mean + torch.exp(0.5 * log_variance) * self.recorded[f"vae_noise.{index}"][0]
            self.checked.add(f"vae_noise.{index}")
        self.check(f"vae_latent.{index}", 0.3611 * (sample - 0.1159))

    def _note_block(self, und, gen, memory, outputs) -> None:
        kind = "vae" if gen is not None else "text" if memory.causal else "vit"
        rows = memory.context.length - memory.start
        self.blocks.append((kind, published_order(und, gen), published_order(*outputs)))
        self.layout.append((memory.context.cache, memory.start, rows, kind))

    def _check_blocks(self) -> None:
        """Decoder inputs and outputs of every block, in the order of the record; ours skips blocks that coincide."""
        names, pictured = [], False
        painted = not self.record.get("understanding_output") and "gen_image" in self.record
        for event in self.record["events"]:
            pictured = pictured or event["op"] != "text"
            if event["context"] == "gen" if "context" in event else True:
                names += [f"ev{event.get('i', 0)}.{stage['stage']}" for stage in event["stages"]]
            elif painted and pictured:
                names.append(f"ev{event['i']}.text")
        assert [name.split(".")[1] for name in names] == [kind for kind, _, _ in self.blocks], self.case.name
        for name, (_, inputs, outputs) in zip(names, self.blocks, strict=True):
            self.check(f"{name}.llm_in", inputs)
            self.check(f"{name}.llm_out", outputs)

    def _check_rows(self, name: str, context: Context) -> None:
        """Keys and values, in the published order of rows: a latent block's end marker comes last there."""
        order = torch.arange(context.length)
        for cache, start, rows, kind in self.layout:
            if cache is context.cache and kind == "vae" and start < context.length:
                order[start : start + rows] = start + torch.tensor([0, *range(2, rows), 1])
        for layer in range(self.model.config.layers):
            key, value = context.cache.layer(layer, context.length)
            self.check(f"kv.{name}.k.{layer}", key[order])
            self.check(f"kv.{name}.v.{layer}", value[order])

    def _check_contexts(self, conversation: Conversation) -> None:
        """Lengths, rope positions and rows of all guidance contexts; then every combination of guidance at step 0."""
        for name, ours in (("gen", "full"), ("cfg_text", "no_text"), ("cfg_img", "texts")):
            context, recorded = getattr(conversation, ours), self.record["gen_image"]["contexts"][name]
            assert (context.length, context.position) == (recorded["kv_lens"][0], recorded["ropes"][0]), name
            self._check_rows(name, context)
        contexts, self.plan = conversation.branches(image_guidance=True, batched=True)
        noise, config = self.recorded["init_noise"], self.model.config
        positions = preprocess.grid_positions(self._latent_grid(), config.latent_side)
        with Canvas(contexts, len(noise) + 2) as canvas:
            velocities = Denoiser(self.model.network, canvas, positions)(noise, torch.tensor(1.0))
        for combo in self.record.get("combos", []):
            guidance = Guidance(
                combo["cfg_text_scale"], combo["cfg_img_scale"], (0.0, 1.0), combo["renorm"], combo["renorm_min"]
            )
            self.check(f"combo.{combo['name']}", self._guided(velocities, guidance, 1.0), FLOW)

    def _latent_grid(self) -> tuple[int, int]:
        height, width = self.record["gen_image"]["image_shape_hw"]
        return height // 16, width // 16

    def _guided(self, velocities: torch.Tensor, guidance: Guidance, time: float) -> torch.Tensor:
        if not guidance.acts_at(time):
            return velocities[0]
        no_image = velocities[self.plan.no_image] if guidance.image_scale > 1 else None
        return guide(velocities[0], velocities[self.plan.no_text], no_image, guidance)

    def _check_step(self, latent: torch.Tensor, time: torch.Tensor, velocities: torch.Tensor) -> None:
        name, self.step = f"step{self.step}", self.step + 1
        self.check(f"{name}.t", time)
        self.check(f"{name}.x_t", latent, FLOW)
        self.check(f"{name}.v_cond", velocities[0], STEP)
        if self.sampling.guidance.acts_at(float(time)):
            self.check(f"{name}.v_text", velocities[self.plan.no_text], STEP)
            if self.sampling.guidance.image_scale > 1:
                self.check(f"{name}.v_img", velocities[self.plan.no_image], STEP)
        self.check(f"{name}.v_t", self._guided(velocities, self.sampling.guidance, float(time)), FLOW)

    def _check_writing(self, context: Context) -> None:
        """Feed the recorded tokens one by one: logits, the next token, and the rows that they leave."""
        written = self.record["generate_text"]
        assert (context.length, context.position) == (written["kv_len"][0], written["first_pos"][0]), self.case.name
        tokens, logits = self.recorded["gen_tokens"].flatten(), []
        for token in tokens:
            context, row = self.model.network.next_logits(context, token.reshape(1))
            logits.append(row)
        self.check("logits", torch.stack(logits))
        self.check("gen_tokens", torch.cat((tokens[:1], torch.stack(logits).argmax(-1)[:-1])))
        self._check_rows_after_writing(context)

    def _check_rows_after_writing(self, context: Context) -> None:
        names = [name.replace("kv_after_generate", "kv.after") for name in self.recorded]
        if any(name.startswith("kv.after") for name in names):
            self.recorded = {n.replace("kv_after_generate", "kv.after"): t for n, t in self.recorded.items()}
            self._check_rows("after", context)


def published_order(und: torch.Tensor | None, gen: torch.Tensor | None) -> torch.Tensor:
    """A block's tokens as published: the end marker of a latent block behind its latents. [n, C]."""
    if gen is None:
        return und[0]
    return torch.cat((und[0, :1], gen[0], und[0, 1:]))
