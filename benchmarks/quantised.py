"""What each format of weights costs: in bytes, in error by layer, and in right answers and edits.

Converts the demo into every format that `g2tr convert` writes, loads each file with nothing beside it but the
tokenizer, and compares with the weights as they are: matrices, hidden states behind some layers of a picture that is
read, the velocity of a denoising step, answers, and edits. Errors are ‖a − b‖ / ‖b‖, computed in fp32, so that nothing
but the weights differs.

With `--peak` it converts a checkpoint of the released widths (one layer of each kind) in processes of their own, and
with `--whole` one of all layers, and prints the time and the highest resident size of each. Resident are the process's
own pages and those of files that it has mapped, which the system drops where memory is short; the own ones (RssAnon)
are printed too. The checkpoint is a sparse file with random values at the beginning of each tensor, and holes, which
are read as zeros: neither memory nor time depends on values. It needs no disk, but what is written does: up to 30 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from g2tr_core.checkpoints.formats.registry import read_weights
from g2tr_core.checkpoints.load_config import IN_LAYERS
from g2tr_core.checkpoints.stored import CPU, StoredTensor, stored_tensors
from g2tr_core.checkpoints.targets import TARGETS
from g2tr_core.checkpoints.writing import Item, write_gguf, write_safetensors
from g2tr_core.cli.options import PRODUCTS
from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.lab.quality.answers import normalised
from g2tr_core.lab.quality.cases import count_of
from g2tr_core.lab.quality.edits import EditRun
from g2tr_core.lab.quality.world_cases import world_edits, world_questions
from g2tr_core.umm import load
from g2tr_core.umm.bagel.preprocess import grid_positions
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.conversion import AUTOENCODER, convert
from g2tr_core.umm.registry import Facts, models

MB, GB = 1e6, 1e9
PLAIN = Guidance(text_scale=1.0, image_scale=1.0)
ONE_STEP = Sampling(steps=1, guidance=PLAIN)
WIDE = "as it is"
DEMOS = {"BAGEL": CHECKPOINT, "InternVL-U": INTERNVLU}
LAYER = re.compile(r"\.(?:layers?|blocks|transformer_blocks)\.(\d+)\.")
DRAWN = 2**15  # random values at the beginning of each tensor


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
    for name in (WIDE, *formats, *([PRODUCTS] if "fp8" in formats else [])):
        path, products = CHECKPOINT, name == PRODUCTS
        if products:
            path = folder / "fp8.safetensors"
        elif name != WIDE:
            path = folder / f"{name}.{'gguf' if TARGETS[name].is_gguf else 'safetensors'}"
            convert(CHECKPOINT, path, name)
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.safetensors")))
        model = load(path, tokenizer=CHECKPOINT, dtype=torch.float32, fp8_products=products)
        kept = load(path, tokenizer=CHECKPOINT, fp8_products=products)  # in bf16, as it is used
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


def wide_checkpoint(folder: Path, known: Facts, *, whole: bool) -> Path:
    """A file of a release's names and shapes in bf16 with the demo's autoencoder, all layers or the first of each kind.

    Its data are holes but for the beginning of each tensor.
    """
    module, name = known.implementation
    network = getattr(import_module(module, "g2tr_core.umm"), name).released()
    state = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    chosen = {key: shape for key, shape in state.items() if whole or {*LAYER.findall(key)} <= {"0"}}
    small = {key: t.load(torch.bfloat16, CPU) for key, t in autoencoder_of(DEMOS[known.name]).items()}
    drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    header: dict[str, Any] = {}
    end = 0
    for key, shape in {**chosen, **{f"{AUTOENCODER}{key}": tuple(t.shape) for key, t in small.items()}}.items():
        begin, end = end, end + 2 * prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = folder / "release.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            values = small[key.removeprefix(AUTOENCODER)] if key.startswith(AUTOENCODER) else drawn
            file.seek(8 + len(text) + begin)
            file.write(values.flatten()[: (end - begin) // 2].view(torch.uint8).numpy().data)
    return path


def autoencoder_of(folder: Path) -> dict[str, StoredTensor]:
    """Tensors of a demo's autoencoder."""
    found = list(folder.glob("ae.safetensors")) or list((folder / "vae").glob("*.safetensors"))
    return stored_tensors(found[0])


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The highest resident size of this process in bytes, and of its own pages alone, as Linux counts them; seconds."""
    seen = {"resident": 0.0, "own": 0.0, "seconds": 0.0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            status = Path("/proc/self/status").read_text()
            for name, field in (("resident", "VmHWM"), ("own", "RssAnon")):
                found = re.search(rf"{field}:\s+(\d+) kB", status)
                seen[name] = max(seen[name], 1024.0 * int(found[1]) if found else 0.0)

    watcher, began = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
        seen["seconds"] = time.monotonic() - began


def peaks(formats: Sequence[str], folder: Path, known: Facts, *, whole: bool, tables: bool) -> None:
    """Print what converting a release takes in each format."""
    source = wide_checkpoint(folder, known, whole=whole)
    size = source.stat().st_size
    what = f"{known.name}, {size / GB:.1f} GB {'' if whole else 'of its widths '}{'with --tables ' if tables else ''}to"
    print(f"\n| {what} | Peak, GB | Own pages, GB | Minutes | File, GB |\n|---|---:|---:|---:|---:|")
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in formats:
        output = folder / f"out.{'gguf' if TARGETS[name].is_gguf else 'safetensors'}"
        command = [sys.executable, __file__, "--job", str(source), str(output), name, *(["--tables"] if tables else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=paths)
        seen = json.loads(done.stdout.splitlines()[-1])
        sizes = [f"{seen[key] / GB:.2f}" for key in ("resident", "own")]
        row = [name, *sizes, f"{seen['seconds'] / 60:.1f}", f"{output.stat().st_size / GB:.2f}"]
        print(f"| {' | '.join(row)} |", flush=True)
        output.unlink()


def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few questions and edits: does it run?")
    parser.add_argument("--answers", type=int, default=300, help="questions a format (300)")
    parser.add_argument("--edits", type=int, default=60, help="edits a format (60)")
    parser.add_argument("--formats", nargs="+", choices=TARGETS, default=[*TARGETS], help="some of them (all)")
    parser.add_argument("--peak", action="store_true", help="only the memory of converting at the released widths")
    parser.add_argument("--whole", action="store_true", help="only that of converting whole releases (minutes, 30 GB)")
    parser.add_argument("--model", choices=[*DEMOS], default="BAGEL", help="with these two: of which (BAGEL)")
    parser.add_argument("--tables", action="store_true", help="with these two: as that of convert")
    parser.add_argument("--folder", help="with these two: where they write (the system's for temporary files)")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job:
        torch.set_num_threads(1)
        with watched() as seen:
            convert(*options.job, tables=options.tables)
        print(json.dumps(seen))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        if options.peak or options.whole:
            known = next(known for known in models() if known.name == options.model)
            peaks(options.formats, Path(temporary), known, whole=options.whole, tables=options.tables)
        else:
            counts = (1, 1) if options.quick else (options.answers, options.edits)
            normal(options.formats, Path(temporary))
            compare(options.formats, *counts, Path(temporary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
