"""Decoding as a CUDA graph, as an option: a token of a text is one launch instead of a thousand.

A graph repeats what was launched once, on the same memory. So a text's keys and values lie in a *bucket*, tensors of a
fixed number of rows that never move; rows that are not written yet weigh nothing. A bucket and its graph serve the next
text, too, where it is no longer. Where a graph cannot be made, the same steps are launched one by one, and the log says
so once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import shown
from .attention import CHANNELS, joined, weight_parts
from .blocks import Block
from .decoder import LanguageModel
from .kv_cache import GROWTH, KVPrefix
from .sizes import DecoderSizes
from .text_writer import Texts, TextWriters

logger = logging.getLogger(__name__)

ROWS = 512  # a bucket has a multiple of them, so that texts of about one length share a graph
NOTHING = -30000.0  # added to a logit, over √D: no chance beside any other, and fp16 holds it

Capture = Callable[[Callable[[], None]], Callable[[], None]]  # what launches -> what launches all of it again


def use_graphs(network: nn.Module) -> None:
    """Let the language model of a network decode by graphs where it can."""
    for module in network.modules():
        if isinstance(module, LanguageModel):
            module.graphs = Graphs()


def texts_behind(model: LanguageModel, prefixes: Sequence[KVPrefix], rows: int, batch: int | None = None) -> Texts:
    """What takes the tokens of texts behind these prefixes; arguments as `TextWriters`."""
    alone = len(prefixes) == 1 and (batch is None or batch == 1)
    if model.graphs is not None and alone and model.graphs.serve(prefixes[0].cache.device):
        return GraphedText(model, model.graphs, prefixes[0], rows)
    return TextWriters(model, prefixes, rows, batch)


def captured(launch: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of what a function launches."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # pictures are opened in another thread
        launch()
    return graph.replay


class Graphs:
    """What the graphs of a model share: the bucket that no text uses now, and whether graphs work here.

    Args:
        capture: makes a graph.
        devices: types of device that have graphs.
    """

    def __init__(self, capture: Capture = captured, devices: Sequence[str] = ("cuda",)) -> None:
        self._capture, self._devices = capture, devices
        self._free: Step | None = None
        self._broken = False
        self._lock = threading.Lock()

    def serve(self, device: torch.device) -> bool:
        """Whether texts on this device are written by graphs."""
        return device.type in self._devices and not self._broken

    def take(self, model: LanguageModel, rows: int, device: torch.device) -> Step:
        """A step with a bucket of so many rows at least."""
        with self._lock:
            free, self._free = self._free, None
        if free is not None and free.bucket.rows >= rows and free.bucket.device == device:
            return free
        return Step(model, Bucket(model.sizes, -(-rows // ROWS) * ROWS, model.compute_dtype, device))

    def give_back(self, step: Step) -> None:
        """Keep a step for the next text."""
        with self._lock:
            self._free = step

    def graph_of(self, step: Step) -> Callable[[], None]:
        """What makes the step, as a graph if that works."""
        if self._broken:
            return step.launch
        try:
            return self._capture(step.launch)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # whatever cannot be captured on this card or with these layers
            self._broken = True
            said = shown(" ".join(str(problem).split("\n")[:2]), 200)
            logger.warning("CUDA graphs do not work here, so tokens are launched one by one: %s", said)
            return step.launch


class Bucket:
    """Keys and values of one text, in tensors that never move: a memory for its tokens (`blocks.Memory`).

    Weights of rows travel in extra channels, as in `attention.widened`.

    Args:
        sizes: of the decoder.
        rows: how many there is room for.
        dtype: of keys and values.
        device: where they lie.
    """

    def __init__(self, sizes: DecoderSizes, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.device, self._width = rows, device, sizes.head_dim
        shape = (sizes.layers, 2, rows, sizes.kv_heads, sizes.head_dim + CHANNELS)  # [layer, key/value, row, head, ch.]
        # Not empty: what is not written must be a number, for it is multiplied by 0.
        self._held = torch.zeros(shape, dtype=dtype, device=device)
        self._next = torch.zeros(sizes.layers, 1, dtype=torch.long, device=device)  # by layer: the next token's row

    def fill(self, prefix: KVPrefix) -> None:
        """Hold the rows of a prefix, and nothing behind them."""
        width, key_weights = self._width, self._held[:, 0, :, :, self._width :]
        key_weights.zero_()
        key_weights[..., 0] = NOTHING
        for layer, held in enumerate(self._held):
            rows = joined(prefix.ranges(layer))
            count = len(rows.key)
            held[0, :count, :, :width], held[1, :count, :, :width] = rows.key, rows.value
            key_weights[layer, :count] = 0.0
            if rows.log_weight is not None:
                key_weights[layer, :count] = weight_parts(rows.log_weight * width**0.5, held.dtype).unsqueeze(1)
            self._next[layer] = count

    def copy(self, other: Bucket) -> None:
        """Hold what a smaller one holds."""
        self._held[:, 0, other.rows :, :, self._width] = NOTHING
        self._held[:, :, : other.rows] = other._held
        self._next.copy_(other._next)

    def advance(self) -> None:
        """Go on to the next token."""
        self._next += 1

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, log_weight: Tensor | None = None
    ) -> Tensor:
        """Hold a token's key and value, [1, 1, H_kv, D], and let its query [1, 1, H, D] see all rows -> [1, 1, H·D]."""
        held, row = self._held[layer], self._next[layer]
        held[0].index_copy_(0, row, F.pad(key[0], (0, CHANNELS)))
        held[1].index_copy_(0, row, F.pad(value[0], (0, CHANNELS)))
        keys, values = held.transpose(1, 2).unsqueeze(1)  # [1, H_kv, rows, D + 8] each
        wide = F.pad(query, (0, CHANNELS), value=1.0).transpose(1, 2)  # [1, H, 1, D + 8]
        grouped = wide.shape[1] != keys.shape[1]
        mixed = F.scaled_dot_product_attention(wide, keys, values, scale=self._width**-0.5, enable_gqa=grouped)
        return mixed[..., : self._width].transpose(1, 2).flatten(2)


class Step:
    """One token of a text in a bucket, from its id to the logits of the next.

    Args:
        model: the weights.
        bucket: the text's own.
    """

    def __init__(self, model: LanguageModel, bucket: Bucket) -> None:
        self.bucket, self._model = bucket, model
        self.ids = torch.zeros(1, dtype=torch.long, device=bucket.device)
        self.position = torch.zeros(1, 1, dtype=torch.long, device=bucket.device)
        self.logits = torch.zeros(1, model.sizes.vocab_size, dtype=model.compute_dtype, device=bucket.device)
        self.graph: Callable[[], None] | None = None

    def launch(self) -> None:
        """Launch everything; the same every time."""
        block = Block(self._model.embed(self.ids).unsqueeze(1), None, self.position, 1, causal=True)
        hidden, _ = self._model.model(block, self.bucket)
        assert hidden is not None
        self.logits.copy_(self._model.logits(hidden[:, -1]))
        self.position += 1
        self.bucket.advance()


class GraphedText:
    """`TextWriters` of one text, by a graph.

    Args:
        model: the weights.
        graphs: of the model.
        prefix: what the text comes behind. Its rows are copied.
        rows: most tokens that will be written. Room is made as they come.
    """

    def __init__(self, model: LanguageModel, graphs: Graphs, prefix: KVPrefix, rows: int) -> None:
        self._model, self._graphs = model, graphs
        self._step = graphs.take(model, prefix.length + min(rows, GROWTH), prefix.cache.device)
        self._left = self._step.bucket.rows - prefix.length
        self._step.bucket.fill(prefix)
        self._step.position.fill_(prefix.position)
        self._warm = False

    def __del__(self) -> None:
        if hasattr(self, "_step"):
            self._graphs.give_back(self._step)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append a token, ids [1] -> logits [1, vocabulary] for the next, which the next call overwrites."""
        if not self._left:
            self._grow()
        step = self._step
        step.ids.copy_(tokens)
        if step.graph is None and self._warm:
            step.graph = self._graphs.graph_of(step)
        # The first token of a new bucket is launched as it is, so that libraries have what they want before a capture.
        (step.launch if step.graph is None else step.graph)()
        self._warm = True
        self._left -= 1
        return step.logits

    def keep(self, places: Sequence[int]) -> None:
        """There is one text."""

    def _grow(self) -> None:
        old, model = self._step, self._model
        bucket = Bucket(model.sizes, old.bucket.rows + GROWTH, model.compute_dtype, old.bucket.device)
        bucket.copy(old.bucket)
        self._step = Step(model, bucket)
        self._step.position.copy_(old.position)
        self._left, self._warm = GROWTH, False
