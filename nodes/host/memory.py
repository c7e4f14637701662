"""Models and readings in ComfyUI's memory manager.

A network is a `CoreModelPatcher` of layers from `comfy.ops`, so the manager may load it in part and cast weights as
they are used. The autoencoder and the KV caches of every reading have patchers of their own: they are counted, moved
off the GPU under pressure, brought back when needed, and freed by ComfyUI's commands, as models are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn

from ...g2tr_core import umm
from ...g2tr_core.embedded import CAVEATS, Caveat
from ...g2tr_core.errors import OutOfMemoryError, SettingsError
from ...g2tr_core.generation.settings import Decoding, Sampling, noise_seed
from ...g2tr_core.reduction import Reduction
from ...g2tr_core.report import Report
from ...g2tr_core.run import Progress as Told
from ...g2tr_core.run import one_thread
from ...g2tr_core.umm.contract import UnifiedModel
from ...g2tr_core.umm.reading import EncodedInputs, Item, Reading
from ...g2tr_core.umm.registry import Purpose, Size
from ...g2tr_core.umm.values import Answer, GeneratedImage
from ..native.model import NativeModel, Wrappers, around_a_run
from .encoder_cache import EncoderCache
from .patching import patcher_of
from .planning import plan_before, show_now
from .progress import Progress
from .quantised import quantised_operations
from .weights import bring_what_is_left

WEIGHTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}

_alive: WeakValueDictionary[Any, ManagedModel] = WeakValueDictionary()


class ManagedModel:
    """A model under ComfyUI's memory manager; what a model socket carries.

    Args:
        model: the core's model; networks on the offload device.
        name: for messages.
        offload_device: where the networks are while they are not in use.
        plan: what goes where when a picture is edited, and what to turn down.
        caveat: of a demo model.
        source: its files and folders, and what else made it what it is.
    """

    def __init__(
        self,
        model: UnifiedModel,
        name: str,
        offload_device: torch.device,
        plan: str,
        caveat: Caveat | None = None,
        source: tuple[Sequence[Path], Sequence[object]] = ((), ()),
    ) -> None:
        self.model, self.name, self.plan, self._caveat, self.source = model, name, plan, caveat, source
        self.patcher = patcher_of(NativeModel(model, offload_device), model.device, offload_device)
        self.patcher.add_wrapper_with_key(Wrappers.OUTER_SAMPLE, "g2tr", around_a_run)
        self.vae_patcher = comfy.model_patcher.ModelPatcher(model.vae, model.device, offload_device)
        self._encoder_cache = EncoderCache()

    def __str__(self) -> str:
        return self.name

    def is_dynamic(self) -> bool:
        """For ComfyUI's output cache: whether the weights can be dropped and read again."""
        dynamic: bool = self.patcher.is_dynamic()
        return dynamic

    def caveats(self, sizes: Sequence[Size] = ()) -> list[str]:
        """What to say of a demo model beside pictures of these sizes that it knows nothing of, or beside a text."""
        if self._caveat is None or (sizes and {*sizes} == {self._caveat.own_size}):
            return []
        return [self._caveat.said]

    def read(
        self,
        pictures: Sequence[Tensor],
        reduction: Reduction | None,
        purpose: Purpose,
        think: bool,
        priority: Sequence[Tensor | None],
        *,
        progress: Told | None = None,
        keep: bool = True,
    ) -> ManagedReading:
        """Read pictures [H, W, C] together; those that were read lately are not encoded again.

        Args:
            progress: told how far it is, in place of the node's bar.
            keep: remember how they were encoded.
        """
        sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
        with self._ready(self.model.memory_estimate.reading(sizes, purpose)):
            encoding = self._encoded(pictures)
            reading = self.model.read(
                encoding,
                reduction,
                purpose=purpose,
                think=think,
                priority=priority,
                progress=progress or self.progress(),
            )
            if keep:
                self._encoder_cache.keep(pictures, reading.encoding)
        caveats = self.caveats(sizes)
        reading.report = reading.report.after(Report(ms=encoding.ms, notes=caveats))
        return ManagedReading(self, reading, caveats)

    def answer(
        self, reading: ManagedReading, question: str, decoding: Decoding, think: bool, progress: Told | None = None
    ) -> Answer:
        """Answer a question about a reading; `progress` is told in place of the node's bar."""
        own, progress = self.own(reading), progress or self.progress()
        with self._ready(self.model.memory_estimate.answering(own, decoding, think), reading):
            return self.model.answer(own, question, decoding=decoding, think=think, progress=progress)

    def answers(
        self,
        asked: Sequence[tuple[ManagedReading, str]],
        decodings: Sequence[Decoding],
        think: bool,
        batch: int,
        progress: Told,
    ) -> list[Answer]:
        """Answer questions about readings, up to `batch` together; see `UnifiedModel.answers`."""
        own = [(self.own(reading), question) for reading, question in asked]
        estimate = self.model.memory_estimate
        needed = sum(
            estimate.answering(reading, decoding, think) for (reading, _), decoding in zip(own, decodings, strict=True)
        )
        with self._ready(needed, *dict.fromkeys(reading for reading, _ in asked)):
            return self.model.answers(own, decoding=decodings, think=think, batch=batch, progress=progress)

    def edit(
        self, reading: ManagedReading, instruction: str, sampling: Sampling, size: Size, think: Decoding | None
    ) -> GeneratedImage:
        """Edit the pictures of a reading."""
        own, progress = self.own(reading), self.progress()
        with self._ready(self.model.memory_estimate.editing(own, size, sampling, think), reading):
            noise = replace(sampling, seed=noise_seed("edit", sampling.seed))
            return self.model.edit(own, instruction, noise, size=size, think=think, progress=progress)

    def imagine(self, prompt: str, sampling: Sampling, size: Size, think: Decoding | None) -> GeneratedImage:
        """Generate a picture from a text."""
        with self._ready(self.model.memory_estimate.imagining(size, sampling, think)):
            return self.model.imagine(prompt, sampling, size=size, think=think, progress=self.progress())

    @contextmanager
    def _ready(self, memory_required: int, *readings: ManagedReading) -> Iterator[None]:
        """Have the manager load what a run needs, and make room for so many bytes beside it."""
        whole = [self.vae_patcher, *(reading.patcher for reading in readings)]
        mm.load_models_gpu([self.patcher, *whole], memory_required=memory_required)
        for patcher in whole:  # their layers do not follow their input from device to device
            if patcher.loaded_size() < patcher.model_size():
                patcher.load(patcher.load_device, full_load=True)
        if not self.patcher.is_dynamic():
            bring_what_is_left(self.patcher.model, self.patcher.load_device)
        self.model.device = self.patcher.load_device
        try:
            try:
                with one_thread(self._caveat is not None and self.model.device.type == "cpu"):
                    yield
            finally:
                for reading in readings:
                    reading.account()
        except OutOfMemoryError:
            mm.unload_all_models()
            mm.soft_empty_cache()
            raise

    def prepare(self, prompt: Any, size: Size) -> None:
        """Make the contexts of a `native.Prompt` once, so that a reading holds all that they start from."""
        reading, sampling = prompt.reading, self.model.default_sampling(prompt.task)
        if reading is None:
            needed = self.model.memory_estimate.imagining(size, sampling, prompt.think)
        else:
            needed = self.model.memory_estimate.editing(self.own(reading), size, sampling, prompt.think)
        with self._ready(needed, *([] if reading is None else [reading])):
            prompt.contexts(self.model.latent_grid(size))
            prompt.forget()

    @contextmanager
    def vae_ready(self, memory_required: int) -> Iterator[None]:
        """Have the manager load the autoencoder, and make room for so many bytes beside it."""
        mm.load_models_gpu([self.vae_patcher], memory_required=memory_required)
        if self.vae_patcher.loaded_size() < self.vae_patcher.model_size():
            self.vae_patcher.load(self.vae_patcher.load_device, full_load=True)
        self.model.device = self.vae_patcher.load_device
        yield

    def _encoded(self, pictures: Sequence[Tensor]) -> EncodedInputs:
        """Pictures as the encoders see them, on the device."""
        items: list[Item] = []
        ms: dict[str, float] = {}
        for picture in pictures:
            mm.throw_exception_if_processing_interrupted()
            known = self._encoder_cache.find(picture)
            encoding = self.model.encode(picture) if known is None else EncodedInputs((known,)).to(self.model.device)
            items += encoding.items
            ms = Report(ms=encoding.ms).after(Report(ms=ms)).ms
        return EncodedInputs(tuple(items), ms)

    def own(self, reading: ManagedReading) -> Reading:
        """The core's reading; refuses that of another model."""
        if reading.owner is not self:
            raise SettingsError(
                f"it was made by another model ({reading.owner}, not {self})",
                where="reading",
                fix="Connect one and the same Load Unified Model to Read Images and to this node",
            )
        return reading.reading

    def progress(self) -> Progress:
        """For one run of a node."""
        return Progress(self.model.latent_space)


class ReadingState(nn.Module):
    """A reading as the memory manager sees it: something with a device that can be moved."""

    def __init__(self, reading: Reading, device: torch.device) -> None:
        super().__init__()
        self.reading, self.device = reading, device

    def to(self, device: torch.device, *_: Any, **__: Any) -> ReadingState:  # type: ignore[override]
        """Move all of it."""
        self.reading.to(device)
        return self


class ManagedReading:
    """A reading under the memory manager; what a reading socket carries.

    Args:
        owner: the model that read; kept alive, for the reading is of no use without it.
        reading: on the model's device.
        caveats: what to say of a demo model that knows nothing of the pictures.
    """

    def __init__(self, owner: ManagedModel, reading: Reading, caveats: Sequence[str] = ()) -> None:
        self.owner, self.reading, self.caveats = owner, reading, caveats
        device = owner.model.device
        state = ReadingState(reading, device)
        self.patcher = comfy.model_patcher.ModelPatcher(state, device, owner.patcher.offload_device)
        self.account()
        mm.load_models_gpu([self.patcher])

    def __str__(self) -> str:
        tokens = self.reading.visual_tokens
        return f"{tokens.after} of {tokens.before} visual tokens"

    @property
    def size(self) -> Size:
        """Width and height of an edit of it, unless another size is asked for."""
        return self.reading.size or self.owner.model.default_size

    def account(self) -> None:
        """Tell the manager how large the reading has become; all of it is where it was, on the device or off it."""
        self.patcher.size = self.reading.nbytes
        if self.patcher.model.device == self.patcher.load_device:
            self.patcher.model.model_loaded_weight_memory = self.patcher.size


def load(
    path: Path,
    vae: Path | None,
    weights: str,
    *,
    name: str,
    stamp: Hashable,
    tokenizer: Path | None = None,
    tokenizers: Sequence[Path] = (),
) -> ManagedModel:
    """Load a model. One that is still in use somewhere in the graph is handed out again instead of loaded twice.

    Its memory plan is shown in the node first, from the headers of its files: reading them whole can take minutes.

    Args:
        path: folder or file of the model.
        vae: file of the autoencoder, or None for the one beside the model.
        weights: a key of `WEIGHTS`, or "auto" for the type that the file has.
        name: for messages.
        stamp: the state of the files.
        tokenizer: folder of the tokenizer, or None for the one beside the model.
        tokenizers: folders of others, for a model that has none: the first that fits is taken.

    Raises:
        CheckpointError: nothing is there, or it is broken or of another model.
    """
    device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    key = (path, vae, weights, tokenizer, stamp, str(device))
    alive = _alive.get(key)
    if alive is not None:
        return alive
    kept_as = WEIGHTS.get(weights) or umm.stored_dtype(path)
    if not mm.supports_cast(device, kept_as):
        raise SettingsError(
            f"{device.type} cannot work with {str(kept_as).removeprefix('torch.')}",
            where="weights",
            fix="Choose bf16 or fp16; of a file in fp8, take the edition in bf16",
        )
    allowed = [torch.float16, torch.float32] if kept_as == torch.float16 else [torch.bfloat16, torch.float32]
    compute = mm.unet_manual_cast(kept_as, device, allowed) or kept_as
    options: dict[str, Any] = {
        "dtype": compute,
        "weight_dtype": None if weights == "auto" and umm.is_quantised(path) else kept_as,
        "vae": vae,
        "tokenizer": tokenizer,
        "tokenizers": tokenizers,
    }
    quantised = quantised_operations(compute)
    plan = plan_before(path, device, "the file's format" if weights == "auto" else weights, quantised, **options)
    show_now(plan)
    model = umm.load(
        path,
        device=device,
        weights_device=offload_device,
        convert_on=device,
        operations=comfy.ops.pick_operations(kept_as, compute, load_device=device),
        quantised_operations=quantised,
        **options,
    )
    if hasattr(mm, "archive_model_dtypes"):  # since dynamic VRAM
        mm.archive_model_dtypes(model.network)
    source = [file for file in (path, vae, tokenizer) if file is not None], (weights, str(compute))
    managed = ManagedModel(model, name, offload_device, plan, CAVEATS.get(path), source)
    _alive[key] = managed
    return managed
