"""KV prefixes: what a model has read, as immutable values that any number of texts and denoisers may continue.

A `KVCache` holds rows; a `KVPrefix` is a value: "these rows, next rope id `position`". Nothing ever overwrites the
rows of a prefix that somebody holds. Writing behind a prefix (`write`) goes on in the same cache where its tail is
free, which costs nothing; where another continuation holds the tail (a second question on another thread, the texts
that guidance compares with), the rows go into a cache of their own, and attention sees both ranges. So a reading, the
instruction behind it and several denoisers share rows without a copy, and no lock is held while one of them works.

The rows that a layer keeps may differ from layer to layer: methods that prune inside the decoder leave later layers
fewer. Each row has a log-weight, None where every row stands for itself (see `attention.KeyValues`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import KeyValues, attention, attention_weights

GROWTH = 1024  # rows that are added at a time behind a text whose length nobody knows


class _Claim:
    """Holds rows: they stay as long as it, or a later claim on the same cache, lives."""

    __slots__ = ("__weakref__", "before")

    def __init__(self, before: _Claim | None) -> None:
        self.before = before


class KVCache:
    """Post-rotary keys and values of every layer.

    Args:
        layers: number of decoder layers.
        kv_heads: key/value heads.
        head_dim: channels a head.
        capacity: rows to allocate at once; writing more grows it (a copy, so size it ahead).
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, *, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (2, capacity, kv_heads, head_dim)  # [key/value, row, head, channel]
        self._rows = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._log_weights: list[Tensor | None] = [None] * layers  # [capacity] fp32 each
        self._root = _Claim(None)
        self._claims: list[weakref.ref[_Claim]] = []  # live ones are a chain; the last live one is the tip
        self._lock = threading.Lock()

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self._rows)

    @property
    def capacity(self) -> int:
        """Rows that fit without growing."""
        return self._rows[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        weights = [weight for weight in self._log_weights if weight is not None]
        return sum(tensor.nbytes for tensor in (*self._rows, *weights))

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._rows[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self._rows[0].device

    def to(self, device: torch.device) -> None:
        """Move the rows. Must not happen while something is written or attended to."""
        self._rows = [rows.to(device) for rows in self._rows]
        self._log_weights = [None if weight is None else weight.to(device) for weight in self._log_weights]

    def like(self, capacity: int) -> KVCache:
        """An empty one of the same shape."""
        heads, channels = self._rows[0].shape[2:]
        return KVCache(self.layers, heads, channels, capacity=capacity, dtype=self.dtype, device=self.device)

    def empty(self) -> KVPrefix:
        """The prefix before anything was written."""
        return KVPrefix(self, (0,) * self.layers, 0, None, self._root)

    def claim(self, behind: _Claim) -> _Claim | None:
        """The tail behind a claim, or None where a later claim holds it."""
        with self._lock:
            if self._tip() is not behind:
                return None
            taken = _Claim(behind)
            self._claims.append(weakref.ref(taken))
            return taken

    def _tip(self) -> _Claim | None:
        """The last claim that is alive. Hold the lock."""
        while self._claims and self._claims[-1]() is None:
            self._claims.pop()
        return self._claims[-1]() if self._claims else self._root

    def reserve(self, rows: Sequence[int]) -> None:
        """Make room for so many rows in each layer. Growing copies the rows in use, a layer at a time."""
        for layer, (old, wanted) in enumerate(zip(self._rows, rows, strict=True)):
            if wanted > old.shape[1]:
                self._resize(layer, wanted)

    def give_back(self, holder: _Claim, rows: Sequence[int]) -> None:
        """Shrink to so many rows in each layer, unless something is being written behind those of `holder`."""
        with self._lock:
            if self._tip() is holder:
                for layer, (old, wanted) in enumerate(zip(self._rows, rows, strict=True)):
                    if wanted < old.shape[1]:
                        self._resize(layer, wanted)

    def _resize(self, layer: int, rows: int) -> None:
        old, weight = self._rows[layer], self._log_weights[layer]
        kept = min(rows, old.shape[1])
        resized = old.new_empty(2, rows, *old.shape[2:])
        resized[:, :kept] = old[:, :kept]
        self._rows[layer] = resized
        if weight is not None:
            self._log_weights[layer] = torch.cat((weight[:kept], weight.new_zeros(rows - kept)))

    def view(self, layer: int, rows: int) -> KeyValues:
        """The first `rows` rows of a layer, as views."""
        weight = self._log_weights[layer]
        key, value = self._rows[layer][:, :rows].unbind()
        return KeyValues(key, value, None if weight is None else weight[:rows])

    def put(self, layer: int, start: int, key: Tensor, value: Tensor, log_weight: Tensor | None) -> None:
        """Write rows [n, H_kv, D] of a layer from row `start` on; log_weight [n] or None for 0. Grows where it must."""
        stop = start + len(key)
        if stop > self._rows[layer].shape[1]:
            self._resize(layer, stop + GROWTH)
        self._rows[layer][0, start:stop] = key
        self._rows[layer][1, start:stop] = value
        known = self._log_weights[layer]
        if known is None and log_weight is None:
            return
        if known is None:
            known = self._log_weights[layer] = torch.zeros(self._rows[layer].shape[1], device=key.device)
        known[start:stop] = 0.0 if log_weight is None else log_weight

    def take(self, layer: int, start: int, rows: Tensor, log_weight: Tensor | None) -> None:
        """Of the rows of a layer from `start` on keep these, [n] int64 ascending, with log_weight [n] or None for 0."""
        stop, held = start + len(rows), self._rows[layer]
        held[:, start:stop] = held[:, start + rows]  # indexing copies before anything is overwritten
        if log_weight is not None and self._log_weights[layer] is None:
            self._log_weights[layer] = torch.zeros(held.shape[1], device=held.device)
        known = self._log_weights[layer]
        if known is not None:
            known[start:stop] = 0.0 if log_weight is None else log_weight


@dataclass(frozen=True, eq=False)
class KVPrefix:
    """Rows that were read, and the rope id of what comes next. Never overwritten while somebody holds it.

    Args:
        cache: holds the rows behind `base`.
        lengths: how many rows of `cache` each layer has.
        position: next rope id.
        base: what lies before, in other caches; None where `cache` holds everything.
        claim: keeps the rows.
    """

    cache: KVCache
    lengths: tuple[int, ...]
    position: int
    base: KVPrefix | None
    claim: _Claim

    @property
    def length(self) -> int:
        """Rows of the first layer, which has as many as any other."""
        return self.rows(0)

    def rows(self, layer: int) -> int:
        """Rows of a layer."""
        return self.lengths[layer] + (0 if self.base is None else self.base.rows(layer))

    @property
    def rows_by_layer(self) -> tuple[int, ...]:
        """Rows of every layer."""
        return tuple(self.rows(layer) for layer in range(self.cache.layers))

    def ranges(self, layer: int) -> list[KeyValues]:
        """All rows of a layer, as views of one range a cache."""
        before = [] if self.base is None else self.base.ranges(layer)
        return [*before, self.cache.view(layer, self.lengths[layer])] if self.lengths[layer] or not before else before

    def caches(self) -> list[KVCache]:
        """Every cache that holds rows of it."""
        return [*([] if self.base is None else self.base.caches()), self.cache]

    def give_back(self, room: int) -> None:
        """Free what was reserved behind it beyond `room` rows, unless something is being written there."""
        self.cache.give_back(self.claim, [length + room for length in self.lengths])

    def write(self, rows: int) -> Writer:
        """Go on behind it with room for `rows` rows; the prefix itself stays as it is."""
        taken = self.cache.claim(self.claim)
        if taken is not None:
            self.cache.reserve([length + rows for length in self.lengths])
            return Writer(self.cache, list(self.lengths), self.base, taken)
        own = self.cache.like(rows)
        claim = own.claim(own.empty().claim)
        assert claim is not None, "nobody else knows the new cache"
        return Writer(own, [0] * own.layers, self, claim)


class Writer:
    """Blocks on their way into a cache: what the decoder attends through while it prefills or decodes.

    At every layer, blocks come in their order. `seen` holds the attention of watched rows.

    Args:
        cache: where rows go.
        ends: for each layer, how many rows there are so far.
        base: what lies before, in other caches.
        claim: on the tail of `cache`.
    """

    def __init__(self, cache: KVCache, ends: list[int], base: KVPrefix | None, claim: _Claim) -> None:
        self._cache, self._ends, self._base, self._claim = cache, ends, base, claim
        self._open = True
        self.watched: dict[int, Sequence[int]] = {}  # by layer: rows of the block that comes next
        self.seen: dict[int, Tensor] = {}  # by layer: [H, R, m] fp32, see `attention_weights`

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, log_weight: Tensor | None = None
    ) -> Tensor:
        """Write a block's rows, and attend to everything so far.

        Args:
            layer: decoder layer.
            query: [1, n, H, D], rotated.
            key: [1, n, H_kv, D], rotated.
            value: [1, n, H_kv, D].
            causal: whether the block is causal over itself (text) or bidirectional (pictures).
            log_weight: [n] fp32, or None for 0.

        Returns:
            [1, n, H·D].
        """
        self.remember(layer, key, value, log_weight=log_weight)
        ranges = self._ranges(layer)
        if layer in self.watched:
            rows = torch.tensor(self.watched[layer], device=query.device)
            behind = sum(len(each.key) for each in ranges) - query.shape[1]
            self.seen[layer] = attention_weights(query[0, rows], ranges, behind + rows if causal else None)
        return attention(query[0], ranges, causal=causal).unsqueeze(0)

    def remember(self, layer: int, key: Tensor, value: Tensor, *, log_weight: Tensor | None = None) -> None:
        """Write a block's keys and values ([1, n, H_kv, D]) without attending: all that the last layer needs."""
        assert self._open, "a finished writer's rows belong to its prefix"
        self._cache.put(layer, self._ends[layer], key[0], value[0], log_weight)
        self._ends[layer] += key.shape[1]

    def values(self, layer: int) -> Tensor:
        """[m, H_kv, D] of all rows that a layer has so far: for methods that choose tokens by them."""
        ranges = self._ranges(layer)
        return ranges[0].value if len(ranges) == 1 else torch.cat([each.value for each in ranges])

    def take(self, layer: int, start: int, rows: Tensor, log_weight: Tensor | None) -> None:
        """Of what was written to a layer from row `start` of its cache on keep these rows, as `KVCache.take`."""
        assert self._open, "a finished writer's rows belong to its prefix"
        self._cache.take(layer, start, rows, log_weight)
        self._ends[layer] = start + len(rows)

    @property
    def ends(self) -> tuple[int, ...]:
        """For each layer, how many rows of its cache there are so far."""
        return tuple(self._ends)

    def finish(self, *marks: tuple[tuple[int, ...], int]) -> list[KVPrefix]:
        """The prefixes behind what was written; nothing more can be written.

        Args:
            marks: for each, the `ends` that there were, and the next rope id; in order.
        """
        self._open = False
        prefixes: list[KVPrefix] = []
        for ends, position in marks:
            if prefixes:  # a claim each, so that a shorter prefix does not go on over the rows of a longer one
                claim = self._cache.claim(self._claim)
                assert claim is not None, "the writer holds the tail"
                self._claim = claim
            prefixes.append(KVPrefix(self._cache, ends, position, self._base, self._claim))
        return prefixes

    def _ranges(self, layer: int) -> list[KeyValues]:
        before = [] if self._base is None else self._base.ranges(layer)
        return [*before, self._cache.view(layer, self._ends[layer])]


@dataclass
class ScratchBlock:
    """A denoising block beside its prefixes: it attends to them and to itself, and leaves nothing behind.

    Samples are ordered by prefix: with two prefixes and three seeds, samples 0–2 see the first one.

    Args:
        prefixes: one a CFG branch. Others may read and continue them at the same time.
        kept: for each layer, keys and values [B, u, H_kv, D] of rows of the block that do not travel with it this
            time, because an earlier step's serve; None where all of them do.
        keep: how many rows, the first ones of the block, to put into `kept` on their way through.
    """

    prefixes: Sequence[KVPrefix]
    kept: list[tuple[Tensor, Tensor]] | None = None
    keep: int = 0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, log_weight: Tensor | None = None
    ) -> Tensor:
        """Let every sample's block attend to its prefix and to itself.

        Args:
            layer: decoder layer.
            query: [B, n, H, D], rotated.
            key: [B, n, H_kv, D], rotated.
            value: [B, n, H_kv, D].
            causal: False; a denoising block is bidirectional.
            log_weight: None; every token of the block stands for itself.

        Returns:
            [B, n, H·D].
        """
        if self.keep:
            self.kept = [] if self.kept is None else self.kept
            self.kept.append((key[:, : self.keep].clone(), value[:, : self.keep].clone()))
        elif self.kept is not None:
            own_key, own_value = self.kept[layer]
            key, value = torch.cat((own_key, key), dim=1), torch.cat((own_value, value), dim=1)
        each = len(query) // len(self.prefixes)
        out = []
        for branch, prefix in enumerate(self.prefixes):
            mine = slice(branch * each, (branch + 1) * each)
            ranges = [*prefix.ranges(layer), KeyValues(key[mine], value[mine], log_weight)]
            out.append(attention(query[mine], ranges, causal=causal))
        return torch.cat(out) if len(out) > 1 else out[0]
