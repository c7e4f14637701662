"""What each format of weights costs: in bytes, in error by layer, and in right answers and edits.

Converts the demo into every format that `g2tr convert` writes, loads each file with nothing beside it but the
tokenizer, and compares with the weights as they are: matrices, hidden states behind some layers of a picture that is
read, the velocity of a denoising step, answers, and edits. Errors are ‖a − b‖ / ‖b‖, computed in fp32, so that nothing
but the weights differs. With `--peak` it converts a checkpoint of the released widths (one layer of each kind, zeros)
in processes of their own and prints the highest resident size of each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from g2tr_core.checkpoints.formats.registry import read_weights
from g2tr_core.checkpoints.load_config import IN_LAYERS
from g2tr_core.checkpoints.stored import CPU, stored_tensors
from g2tr_core.checkpoints.targets import TARGETS
from g2tr_core.checkpoints.writing import Item, write_gguf, write_safetensors
from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.lab.quality.answers import normalised
from g2tr_core.lab.quality.cases import count_of
from g2tr_core.lab.quality.edits import EditRun
from g2tr_core.lab.quality.world_cases import world_edits, world_questions
from g2tr_core.umm import load
from g2tr_core.umm.bagel.config import BagelConfig
from g2tr_core.umm.bagel.network import BagelNetwork, SpecialTokens
from g2tr_core.umm.bagel.preprocess import grid_positions
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.conversion import AUTOENCODER, convert

MB, GB = 1e6, 1e9
PLAIN = Guidance(text_scale=1.0, image_scale=1.0)
ONE_STEP = Sampling(steps=1, guidance=PLAIN)
WIDE = "as it is"


def error(found: Tensor, expected: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def weights_of(path: Path) -> dict[str, Tensor]:
    """The matrices of all layers, multiplied out in fp32."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    stored = {name: tensor for file in files for name, tensor in read_weights(stored_tensors(file)).items()}
    in_layers = {name: t for name, t in stored.items() if IN_LAYERS.search(name) and len(t.shape) == 2}
    names = {name: name.partition("vlm.")[2] or name.partition("generation_decoder.")[2] or name for name in in_layers}
    chosen = {names[name]: t for name, t in in_layers.items() if not name.startswith(AUTOENCODER)}
    return {name: tensor.load(torch.float32, CPU) for name, tensor in chosen.items()}


def hidden_states(model: Any) -> list[Tensor]:
    """Behind the first, the middle and the last layer, of a picture that is read: [n, C] each."""
    (picture,) = model.encode(SAMPLE.picture).pictures
    places = grid_positions(picture.prepared.vit_grid, model.config.vit_side)
    with torch.inference_mode():
        block = model.network.visual_block(picture.features, places)
        chosen = [1, model.config.layers // 2, model.config.layers]
        language_model = model.network.language_model
        prefix = language_model.empty(block.rows, CPU)
        done = language_model.model.prefill(prefix, [block], hidden={*chosen})
    return [done.hidden[layer] for layer in chosen]


def velocity(model: UnifiedModel) -> Tensor:
    """Of the first denoising step of an edit, [C, h, w]: one step goes from the noise by the whole of it."""
    reading = model.read(SAMPLE.picture, purpose="edit")
    assert reading.size is not None
    noise = model.starting_noise(0, model.latent_grid(reading.size))
    return noise - model.edit(reading, SAMPLE.instruction, ONE_STEP, noise=noise).latent.cpu()


def right_answers(model: UnifiedModel, count: int) -> float:
    """The share of right answers to questions about the synthetic world."""
    cases, right = world_questions(count, 0), 0
    for case in cases:
        reading = model.read(case.image)
        for task in case.tasks:
            answer = model.answer(reading, task.text, decoding=Decoding(max_tokens=8)).text
            right += normalised(answer) == normalised(task.answer)
    return right / count_of(cases)


def right_edits(model: UnifiedModel, count: int) -> float:
    """The share of right edits, as `g2tr bench quality` judges them."""
    cases, store = world_edits(count, 0), None
    run = EditRun(model, cases, (), model.default_sampling("edit"), store)  # type: ignore[arg-type]
    judged = []
    for case in cases:
        whole = model.read(case.image, purpose="edit")
        truths = [run.truth(case, task, whole) for task in case.tasks]
        judged += [truth.is_right(truth.full) for truth in truths if len(truth.mistakes)]
    return sum(judged) / len(judged)


def compare(formats: Sequence[str], answers: int, edits: int, folder: Path) -> None:
    """Print the table of the demo, and that of the tiny InternVL-U."""
    columns = ("File, MB", "Resident / file", "Weights", "Layer 1", "Middle", "Last", "Velocity", "Answers", "Edits")
    print(f"\n| Demo (BAGEL) | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    original, states, expected = weights_of(CHECKPOINT / "ema.safetensors"), [], torch.empty(0)
    for name in (WIDE, *formats):
        path = CHECKPOINT
        if name != WIDE:
            path = folder / f"{name}.{'gguf' if TARGETS[name].is_gguf else 'safetensors'}"
            convert(CHECKPOINT, path, name)
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.safetensors")))
        model = load(path, tokenizer=CHECKPOINT, dtype=torch.float32)
        kept = load(path, tokenizer=CHECKPOINT)  # in bf16, as it is used
        resident = sum(t.nbytes for part in (kept.network, kept.vae) for t in part.state_dict().values())
        found, moved = hidden_states(model), velocity(model)
        states, expected = (found, moved) if name == WIDE else (states, expected)
        weights = weights_of(path if name != WIDE else CHECKPOINT / "ema.safetensors")
        off = sum(error(weights[key], tensor) for key, tensor in original.items()) / len(original)
        errors = [off, *map(error, found, states), error(moved, expected)]
        shares = [right_answers(kept, answers), right_edits(kept, edits)]
        told = " | ".join([*(f"{100 * each:.2f} %" for each in errors), *(f"{100 * each:.1f} %" for each in shares)])
        print(f"| {name} | {size / MB:.1f} | {resident / size:.2f} | {told} |", flush=True)
    print("\n| InternVL-U (tiny, random) | Weights | Velocity |\n|---|---:|---:|")
    model = load(INTERNVLU, dtype=torch.float32)
    original, expected = weights_of(INTERNVLU / "vlm") | weights_of(INTERNVLU / "generation_decoder"), velocity(model)
    for name in formats:
        path = folder / f"u-{name}.{'gguf' if TARGETS[name].is_gguf else 'safetensors'}"
        convert(INTERNVLU, path, name)
        weights = weights_of(path)
        off = sum(error(weights[key], tensor) for key, tensor in original.items()) / len(original)
        moved = velocity(load(path, tokenizer=INTERNVLU, dtype=torch.float32))
        print(f"| {name} | {100 * off:.2f} % | {100 * error(moved, expected):.2f} % |", flush=True)


def normal(formats: Sequence[str], folder: Path) -> None:
    """Print the error of a matrix of normal values whose columns are whole blocks of every type."""
    name = "layers.0.weight"
    matrix = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({name: matrix}, folder / "normal.safetensors")
    source = stored_tensors(folder / "normal.safetensors")[name]
    print("\n| 512 x 1,024 normal values | Error | Bits a value |\n|---|---:|---:|")
    for each in formats:
        target = TARGETS[each]
        path = folder / f"normal-{each}.{'gguf' if target.is_gguf else 'safetensors'}"
        write = write_gguf if target.is_gguf else write_safetensors
        write([Item(name, source, target if target.kind else None)], {}, path, lambda *_: None)
        found = read_weights(stored_tensors(path))[name].load(torch.float32, CPU)
        print(f"| {each} | {100 * error(found, matrix):.2f} % | {target.bits:g} |")


def wide_checkpoint(folder: Path) -> Path:
    """A checkpoint of the released widths with one layer of each kind, all zeros: a sparse file takes no disk."""
    config = BagelConfig(layers=1, vit_layers=1)
    network = BagelNetwork(config, SpecialTokens(0, 1, 2, 3), device="meta")
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in network.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "ema.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "ae.safetensors").write_bytes((CHECKPOINT / "ae.safetensors").read_bytes())
    return folder


def peaks(formats: Sequence[str], folder: Path) -> None:
    """Print the highest resident size of converting a checkpoint of the released widths."""
    source = wide_checkpoint(folder)
    size = (source / "ema.safetensors").stat().st_size
    print(f"\n| Converting {size / GB:.1f} GB of the released widths to | Peak, GB | File, GB |\n|---|---:|---:|")
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in formats:
        output = folder / f"out.{'gguf' if TARGETS[name].is_gguf else 'safetensors'}"
        command = [sys.executable, __file__, "--job", str(source), str(output), name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=paths)
        peak = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {peak / GB:.2f} | {output.stat().st_size / GB:.2f} |", flush=True)
        output.unlink()


def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few questions and edits: does it run?")
    parser.add_argument("--answers", type=int, default=300, help="questions a format (300)")
    parser.add_argument("--edits", type=int, default=60, help="edits a format (60)")
    parser.add_argument("--formats", nargs="+", choices=TARGETS, default=[*TARGETS], help="some of them (all)")
    parser.add_argument("--peak", action="store_true", help="only the memory of converting at the released widths")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job:
        convert(*options.job)
        unit = 1 if sys.platform == "darwin" else 1024
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        if options.peak:
            peaks(options.formats, Path(temporary))
        else:
            counts = (1, 1) if options.quick else (options.answers, options.edits)
            normal(options.formats, Path(temporary))
            compare(options.formats, *counts, Path(temporary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
