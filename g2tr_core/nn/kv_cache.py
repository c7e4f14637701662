"""The KV cache of a conversation: append-only rows, allocated ahead, forked by length.

A `KVCache` holds the rows of one branch. A `Context` is a value: "the first `length` rows, next rope position
`position`". Appending to a context gives a new one and leaves the old one usable, so the text-guidance context is
just an earlier context of the same cache, and every question starts again from the context of the pictures. Appending
to an earlier context overwrites what came after it; contexts that lose their rows that way are refused, not misread.

A denoising block attends to a context *and* to itself, for every guidance branch, at every step, without being
remembered. Attention without a mask does not care about the order of keys, so `Canvas` opens one gap of block size
behind the shortest context of a cache: each branch then sees one contiguous range of rows, and no cache is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .attention import attention


class KVCache(nn.Module):
    """Post-rotary keys and values of every layer. A module, so that a memory manager can count and move its rows.

    Args:
        layers: number of decoder layers.
        kv_heads: key/value heads.
        head_dim: channels a head.
        capacity: rows to allocate at once; `reserve` grows it (a copy, so size it ahead).
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, *, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        shape = (2, layers, capacity, kv_heads, head_dim)  # [key/value, layer, row, head, channel]
        self._rows: Tensor
        self.register_buffer("_rows", torch.empty(shape, dtype=dtype, device=device))
        self._blocks: tuple[int, ...] = ()  # which appends the rows hold now, in order
        self._appended = 0  # blocks ever appended; names each one
        self._gap_open = False

    @property
    def capacity(self) -> int:
        """Rows that fit without growing."""
        return self._rows.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._rows.element_size() * self._rows.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self._rows.device

    def empty(self) -> Context:
        """The context before anything was appended."""
        return Context(self)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in all. Growing copies the rows in use, once."""
        if rows <= self.capacity:
            return
        kinds, layers, _, heads, channels = self._rows.shape
        grown = self._rows.new_empty(kinds, layers, rows, heads, channels)
        grown[:, :, : self.capacity] = self._rows
        self._rows = grown

    def append(self, context: Context, rows: int, *, advance: int, causal: bool) -> Append:
        """Start a block behind `context`; whatever was appended behind it before is given up.

        Args:
            context: of this cache.
            rows: how many tokens the block has.
            advance: by how much the rope position moves on.
            causal: whether the block is causal over itself (text) or bidirectional (pictures).

        Raises:
            RuntimeError: `context` is stale (its rows were overwritten), or a `Canvas` is open on the cache.
        """
        self.check(context)
        if self._gap_open:
            raise RuntimeError("cannot append to a context while a canvas is open on its cache")
        self.reserve(context.length + rows)
        self._appended += 1
        self._blocks = (*context.blocks, self._appended)
        grown = Context(self, context.length + rows, context.position + advance, self._blocks)
        return Append(grown, start=context.length, position=context.position, causal=causal)

    def check(self, context: Context) -> None:
        """Raise RuntimeError unless the rows of `context` are still the ones that it was made with."""
        if context.cache is not self or self._blocks[: len(context.blocks)] != context.blocks:
            raise RuntimeError("stale context: its rows were overwritten by an append to an earlier context")

    def layer(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """The first `rows` keys and values of one layer, as views [rows, H_kv, D]."""
        return self._rows[0, layer, :rows], self._rows[1, layer, :rows]

    @contextmanager
    def gap(self, start: int, used: int, rows: int) -> Iterator[None]:
        """Move rows `start` … `used` up by `rows` for a while (see `Canvas`)."""
        if self._gap_open:
            raise RuntimeError("another canvas is open on this cache")
        self.reserve(used + rows)
        self._move(start, used, start + rows)
        self._gap_open = True
        try:
            yield
        finally:
            self._move(start + rows, used + rows, start)
            self._gap_open = False

    def _move(self, start: int, end: int, to: int) -> None:
        """Copy rows `start` … `end` to `to` and on: a layer at a time, for there may be little memory left."""
        for layer in self._rows.flatten(0, 1).unbind():
            layer[to : to + end - start] = layer[start:end].clone()


@dataclass(frozen=True, eq=False)
class Context:
    """The first `length` rows of a cache, and the rope position of the next block."""

    cache: KVCache
    length: int = 0
    position: int = 0
    blocks: tuple[int, ...] = field(default=(), repr=False)

    def branch(self, capacity: int) -> Context:
        """The same context in a cache of its own, to be continued in another way. Copies its rows: for texts only."""
        _, layers, _, heads, channels = self.cache._rows.shape
        own = KVCache(
            layers,
            heads,
            channels,
            capacity=max(capacity, self.length),
            dtype=self.cache.dtype,
            device=self.cache.device,
        )
        own._rows[:, :, : self.length] = self.cache._rows[:, :, : self.length]
        own._blocks, own._appended = self.blocks, self.cache._appended
        return replace(self, cache=own)

    def same_as(self, other: Context) -> bool:
        """Whether both see the same rows at the same position."""
        return self.cache is other.cache and self.blocks == other.blocks and self.position == other.position


@dataclass(frozen=True)
class Append:
    """One block on its way into the cache: what the decoder calls at every layer.

    `context` is the grown context, to be used once every layer has attended.
    """

    context: Context
    start: int  # first row of the block
    position: int  # rope position of the block's first token
    causal: bool

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write this block's keys and values, and attend to everything so far.

        Args:
            layer: decoder layer.
            query: [1, n, H, D], rotated.
            key: [1, n, H_kv, D], rotated.
            value: [1, n, H_kv, D].

        Returns:
            [1, n, H·D].
        """
        self.remember(layer, key, value)
        keys, values = self.context.cache.layer(layer, self.context.length)
        return attention(query[0], keys, values, causal=self.causal).unsqueeze(0)

    def remember(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write this block's keys and values ([1, n, H_kv, D]) without attending: all that the last layer needs."""
        keys, values = self.context.cache.layer(layer, self.context.length)
        keys[self.start :] = key[0]
        values[self.start :] = value[0]


class Canvas:
    """Room for a denoising block beside one or more contexts, held open for all steps of a run.

    In every cache that the contexts use, the rows behind the shortest context move up by `rows`, once. The gap takes
    the block's keys and values at each layer; a context of length n then attends to rows 0 … n + `rows`. Branches take
    turns in the gap, so several guidance branches may share a cache. Closing moves the rows back.

    Use as a context manager: while it is open, nothing can be appended to these caches.

    Args:
        contexts: one a branch; the block's tokens see them and themselves.
        rows: tokens of the block.
    """

    def __init__(self, contexts: Sequence[Context], rows: int) -> None:
        self.contexts = tuple(contexts)
        self.rows = rows
        self._gap_start: dict[KVCache, int] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Canvas:
        """Open the gaps; RuntimeError where a context is stale or another canvas is open on its cache."""
        with ExitStack() as opened:
            for cache in {context.cache: None for context in self.contexts}:
                mine = [context for context in self.contexts if context.cache is cache]
                shortest, longest = min(c.length for c in mine), max(c.length for c in mine)
                for context in mine:
                    cache.check(context)
                opened.enter_context(cache.gap(shortest, longest, self.rows))
                self._gap_start[cache] = shortest
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def branches(self, chosen: slice) -> Branches:
        """What some of the branches attend to, as the decoder's memory."""
        contexts = self.contexts[chosen]
        return Branches(tuple((context, self._gap_start[context.cache]) for context in contexts), self.rows)


@dataclass(frozen=True)
class Branches:
    """The decoder's memory for one forward pass over some branches of an open canvas."""

    contexts: tuple[tuple[Context, int], ...]  # with the first row of the gap in each context's cache
    rows: int

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let every branch's block attend to its context and to itself.

        Args:
            layer: decoder layer.
            query: [B, n, H, D], rotated, one a branch.
            key: [B, n, H_kv, D], rotated.
            value: [B, n, H_kv, D].

        Returns:
            [B, n, H·D].
        """
        out = []
        for branch, (context, gap) in enumerate(self.contexts):
            keys, values = context.cache.layer(layer, context.length + self.rows)
            keys[gap : gap + self.rows] = key[branch]
            values[gap : gap + self.rows] = value[branch]
            out.append(attention(query[branch], keys, values))
        return torch.stack(out) if len(out) > 1 else out[0].unsqueeze(0)
