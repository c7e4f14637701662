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

from g2tr_core.generation.flow import Branches
from g2tr_core.generation.guidance import renormalised
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.nn.blocks import Block
from g2tr_core.nn.kv_cache import KVCache, KVPrefix
from g2tr_core.nn.patches import patchify, unpatchify
from g2tr_core.nn.text_writer import TextWriter
from g2tr_core.reduction import Reduction
from g2tr_core.umm.bagel import preprocess
from g2tr_core.umm.bagel.config import ResizeRule
from g2tr_core.umm.bagel.conversation import BagelReading, Conversation, split_thinking
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.bagel.network import BagelDenoiser
from g2tr_core.umm.values import GeneratedImage

UNRECORDED_FORWARD = BagelDenoiser.forward
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
        self.branches: Branches[KVPrefix] | None = None
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
        noise = self._latent(self.recorded["init_noise"])
        self.checked.add("init_noise")
        if any(isinstance(entry, Path) for entry in inputs):
            instruction = inputs.pop() if isinstance(inputs[-1], str) else ""
            reading = self.model.read(inputs, self.reduction, purpose="edit", think=think is not None)
            self._check_pictures(reading)
            made = self.model.edit(reading, instruction, self.sampling, noise=noise, think=think)
        else:
            height, width = params["image_shapes"]
            made = self.model.imagine(inputs[0], self.sampling, size=(width, height), noise=noise, think=think)
        if "text_output" in self.record:
            assert made.thinking == "".join(self.record["text_output"])
        self._check_made(made)

    def _check_made(self, made: GeneratedImage) -> None:
        self.check("final_latent", self._patches(made.latent), FLOW)
        self.check("decode0.in", made.latent, FLOW)
        self.check("decode0.out", self.model.vae.decode(made.latent), FLOW)
        ours = np.asarray(made.image).astype(int)
        images = [self.recorded["image_u8"].numpy()] if "image_u8" in self.recorded else []
        png = self.case.tensors.with_suffix(".png")
        images += [np.asarray(Image.open(png))] if png.is_file() else []
        for image in images:
            assert np.abs(ours - image.astype(int)).max() <= 1, f"{self.case.name}: pixels differ by more than 1"
        self.checked.add("image_u8")

    def _check_pictures(self, reading: BagelReading) -> None:
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
        prefill, anchors, write = decoder.prefill, model.anchors, model._decoded
        pictures = [event for event in self.record["events"] if event["op"] in ("image", "chat")]
        latents = sorted(name for name in self.recorded if re.fullmatch(r"vae_latent\.\d+", name))
        twice = len(latents) == 2 * len(pictures)  # once for the context, once more for the anchors
        encoded = [0]

        def recording_prefill(prefix: KVPrefix, blocks: list[Block], **options):
            (block,) = blocks
            placed = replace(block, rope_ids=block.rope_ids + prefix.position)
            outputs = decoder(placed, prefix.write(block.rows))
            done = prefill(prefix, blocks, **options)  # what runs for real must leave the same rows
            replay._note_block(block, done.prefix, outputs)
            return done

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

        def recording_write(conversations, *arguments):
            (conversation,) = conversations
            if replay.record.get("understanding_output"):
                replay._check_rows("gen", conversation.full)
            texts = write(conversations, *arguments)
            replay._check_writing(conversation.full)
            return texts

        def recording_branches(conversation, *, image_guidance):
            replay._check_contexts(conversation)
            replay.branches = branches(conversation, image_guidance=image_guidance)
            return replay.branches

        def note_vit(module, arguments, output):
            replay.vit_outputs.append(output)

        def recording_forward(denoiser, x, t, context, options=None):
            velocities = forward(denoiser, x, t, context, options)
            replay._check_step(x, t, velocities)
            return velocities

        branches, forward = Conversation.branches, BagelDenoiser.forward
        hook = model.network.vit_model.register_forward_hook(note_vit)
        try:
            with (
                patch.object(decoder, "prefill", recording_prefill),
                patch.object(model.vae, "encode", recorded_encode),
                patch.object(model, "anchors", recording_anchors),
                patch.object(model, "_decoded", recording_write),
                patch.object(Conversation, "branches", recording_branches),
                patch.object(BagelDenoiser, "forward", recording_forward),
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

    def _note_block(self, block: Block, behind: KVPrefix, outputs) -> None:
        kind = "vae" if block.gen is not None else "text" if block.causal else "vit"
        self.blocks.append((kind, published_order(block.und, block.gen), published_order(*outputs)))
        self.layout.append((behind.cache, behind.lengths[0] - block.rows, block.rows, kind))

    def _check_blocks(self) -> None:
        """Decoder inputs and outputs of every block, in the order of the record; ours skips blocks that coincide."""
        names, pictured = [], False
        generates = not self.record.get("understanding_output") and "gen_image" in self.record
        for event in self.record["events"]:
            pictured = pictured or event["op"] != "text"
            if event["context"] == "gen" if "context" in event else True:
                names += [f"ev{event.get('i', 0)}.{stage['stage']}" for stage in event["stages"]]
            elif generates and pictured:
                names.append(f"ev{event['i']}.text")
        assert [name.split(".")[1] for name in names] == [kind for kind, _, _ in self.blocks], self.case.name
        for name, (_, inputs, outputs) in zip(names, self.blocks, strict=True):
            self.check(f"{name}.llm_in", inputs)
            self.check(f"{name}.llm_out", outputs)

    def _check_rows(self, name: str, prefix: KVPrefix) -> None:
        """Keys and values, in the published order of rows: a latent block's end marker comes last there."""
        order = torch.arange(prefix.length)
        for cache, start, rows, kind in self.layout:
            if cache is prefix.cache and kind == "vae" and start < prefix.lengths[0]:
                first = start + prefix.length - prefix.lengths[0]
                order[first : first + rows] = first + torch.tensor([0, *range(2, rows), 1])
        for layer in range(self.model.config.layers):
            ranges = prefix.ranges(layer)
            self.check(f"kv.{name}.k.{layer}", torch.cat([each.key for each in ranges])[order])
            self.check(f"kv.{name}.v.{layer}", torch.cat([each.value for each in ranges])[order])

    def _check_contexts(self, conversation: Conversation) -> None:
        """Lengths, rope positions and rows of all guidance contexts; then every combination of guidance at step 0."""
        for name, ours in (("gen", "full"), ("cfg_text", "no_text"), ("cfg_img", "texts")):
            prefix, recorded = getattr(conversation, ours), self.record["gen_image"]["contexts"][name]
            assert (prefix.length, prefix.position) == (recorded["kv_lens"][0], recorded["ropes"][0]), name
            self._check_rows(name, prefix)
        everything = Branches.of(conversation.full, conversation.no_text, conversation.texts)
        height, width = self.record["gen_image"]["image_shape_hw"]
        noise = self._latent(self.recorded["init_noise"]).repeat(len(everything.contexts), 1, 1, 1)
        denoiser = self.model.denoiser((height // 8, width // 8))
        velocities = UNRECORDED_FORWARD(denoiser, noise, torch.ones(1), everything.contexts)
        for combo in self.record.get("combos", []):
            guidance = Guidance(
                combo["cfg_text_scale"], combo["cfg_img_scale"], (0.0, 1.0), combo["renorm"], combo["renorm_min"]
            )
            self.check(f"combo.{combo['name']}", self._guided(velocities, everything, guidance, 1.0), FLOW)

    def _patches(self, latent: torch.Tensor) -> torch.Tensor:
        return patchify(latent, self.model.config.latent_patch, "pqc")

    def _latent(self, patches: torch.Tensor) -> torch.Tensor:
        height, width = self.record["gen_image"]["image_shape_hw"]
        return unpatchify(patches, (height // 16, width // 16), self.model.config.latent_patch, "pqc")

    def _guided(self, velocities: torch.Tensor, branches: Branches, guidance: Guidance, time: float) -> torch.Tensor:
        full, no_text = velocities[:1], velocities[branches.no_text : branches.no_text + 1]
        if not guidance.acts_at(time):
            return self._patches(full)
        bare = velocities[branches.bare : branches.bare + 1] if guidance.image_scale > 1 else None
        return self._patches(renormalised(full, no_text, bare, guidance, time))

    def _check_step(self, x: torch.Tensor, t: torch.Tensor, velocities: torch.Tensor) -> None:
        name, self.step, time = f"step{self.step}", self.step + 1, float(t)
        self.check(f"{name}.t", t)
        self.check(f"{name}.x_t", self._patches(x[0]), FLOW)
        self.check(f"{name}.v_cond", self._patches(velocities[0]), STEP)
        if self.sampling.guidance.acts_at(time):
            self.check(f"{name}.v_text", self._patches(velocities[self.branches.no_text]), STEP)
            if self.sampling.guidance.image_scale > 1:
                self.check(f"{name}.v_img", self._patches(velocities[self.branches.bare]), STEP)
        self.check(f"{name}.v_t", self._guided(velocities, self.branches, self.sampling.guidance, time), FLOW)

    def _check_writing(self, prefix: KVPrefix) -> None:
        """Feed the recorded tokens one by one: logits, the next token, and the rows that they leave."""
        written = self.record["generate_text"]
        assert (prefix.length, prefix.position) == (written["kv_len"][0], written["first_pos"][0]), self.case.name
        tokens = self.recorded["gen_tokens"].flatten()
        writer = TextWriter(self.model.network.language_model, prefix, len(tokens))
        logits = torch.stack([writer(token.reshape(1)) for token in tokens])
        self.check("logits", logits)
        self.check("gen_tokens", torch.cat((tokens[:1], logits.argmax(-1)[:-1])))
        names = [name.replace("kv_after_generate", "kv.after") for name in self.recorded]
        if any(name.startswith("kv.after") for name in names):
            self.recorded = {n.replace("kv_after_generate", "kv.after"): t for n, t in self.recorded.items()}
            self._check_rows("after", writer.finish())


def published_order(und: torch.Tensor | None, gen: torch.Tensor | None) -> torch.Tensor:
    """A block's tokens as published: the end marker of a latent block behind its latents. [n, C]."""
    if gen is None:
        return und[0]
    return torch.cat((und[0, :1], gen[0], und[0, 1:]))
