"""The methods that work inside the decoder, written out slowly: one sequence, full matrices, explicit masks, loops.

Nothing here is shared with the code under test but the weights of the layers. A dropped row stays in the sequence, and
nobody sees it any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from g2tr_core.nn.blocks import Block
from g2tr_core.nn.decoder import Decoder


@dataclass
class Picture:
    """What is left of a picture: its rows in the sequence and their places in the grid.

    Args:
        rows: in the sequence.
        grid: of all its tokens.
        places: in the grid, for each row that is left.
    """

    rows: list[int]
    grid: tuple[int, int]
    places: list[int]

    @property
    def tokens(self) -> int:
        """Of the whole grid."""
        return self.grid[0] * self.grid[1]


@dataclass
class Slow:
    """A decoder over a sequence of blocks.

    Args:
        decoder: the weights.
        blocks: as they were before any layer.
        pictures: which rows are visual tokens.
        weighed: whether what is dropped leaves its weight to the nearest that stays.
    """

    decoder: Decoder
    blocks: Sequence[Block]
    pictures: list[Picture]
    weighed: bool = False
    alive: list[Tensor] = field(default_factory=list)  # [n] bool, by layer, as a later token finds it
    went_through: list[int] = field(default_factory=list)  # rows, by layer
    keys: list[Tensor] = field(default_factory=list)  # [n, H_kv, D] by layer
    values: list[Tensor] = field(default_factory=list)
    log_weights: list[Tensor] = field(default_factory=list)  # [n] by layer

    def __post_init__(self) -> None:
        streams = [(part, is_gen) for b in self.blocks for part, is_gen in ((b.und, False), (b.gen, True))]
        self.x = torch.cat([part[0] for part, _ in streams if part is not None])
        self.is_gen = torch.cat([torch.full((part.shape[1],), gen) for part, gen in streams if part is not None])
        ids, self.position = [], 0
        for block in self.blocks:
            ids.append((block.rope_ids + self.position).expand(block.rows))
            self.position += block.advance
        self.rope = torch.cat(ids)
        owner = [number for number, block in enumerate(self.blocks) for _ in range(block.rows)]
        n = len(owner)
        self.sees = torch.zeros(n, n, dtype=torch.bool)
        for i in range(n):
            for j in range(n):
                self.sees[i, j] = j <= i or (owner[i] == owner[j] and not self.blocks[owner[i]].causal)
        self.now = torch.ones(n, dtype=torch.bool)
        self.weight = torch.ones(n)
        self.best: set[int] = set()  # of all pictures, what TRIM keeps as it is
        start = 0
        for block in self.blocks:
            if block.log_weight is not None:
                self.weight[start : start + block.rows] = block.log_weight.exp()
            start += block.rows
        last = self.blocks[-1]
        self.prompt = list(range(n - last.rows if last.tokens is None else n - last.rows + last.tokens[1], n))

    def attention(self, number: int, x: Tensor, rope: Tensor, is_gen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [n, heads, D] of a layer."""
        layer = self.decoder.layers[number]
        module, head = layer.self_attn, layer.self_attn.head_dim

        def each(base: str, normed: bool) -> Tensor:
            found = []
            for row, gen in zip(x, is_gen.tolist(), strict=True):
                tail = "_moe_gen" if gen else ""
                y = getattr(layer, f"input_layernorm{tail}")(row[None])
                y = getattr(module, f"{base}_proj{tail}")(y).unflatten(-1, (-1, head))
                found.append(getattr(module, f"{base}_norm{tail}")(y) if normed else y)
            return torch.cat(found)

        angles = rope[:, None].float() / self.decoder.sizes.rope_theta ** (torch.arange(0, head, 2) / head)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]

        def turned(y: Tensor) -> Tensor:
            a, b = y[..., : head // 2], y[..., head // 2 :]
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        return turned(each("q", True)), turned(each("k", True)), each("v", False)

    def weights(self, query: Tensor, key: Tensor, sees: Tensor, log_weight: Tensor) -> Tensor:
        """[H, n, m] softmax over what is seen."""
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5 + log_weight
        return scores.masked_fill(~sees, -torch.inf).softmax(-1)

    def mixed(self, number: int, x: Tensor, weights: Tensor, value: Tensor, is_gen: Tensor) -> Tensor:
        """The rest of a layer."""
        layer = self.decoder.layers[number]
        value = value.repeat_interleave(weights.shape[0] // value.shape[1], 1)
        mixed = torch.einsum("hqk,khd->qhd", weights, value).flatten(1)
        rows = []
        for row, part, gen in zip(x, mixed, is_gen.tolist(), strict=True):
            tail = "_moe_gen" if gen else ""
            y = row[None] + getattr(layer.self_attn, f"o_proj{tail}")(part[None])
            rows.append(y + getattr(layer, f"mlp{tail}")(getattr(layer, f"post_attention_layernorm{tail}")(y)))
        return torch.cat(rows)

    def run(self, name: str, stages: Mapping[int, float], everywhere: bool) -> None:
        """Through all layers; stages say which share of each picture's tokens a layer and all later ones get."""
        before: tuple[Tensor, Tensor] | None = None  # weights and values of the layer before
        for number in range(len(self.decoder.layers)):
            if number in stages:
                counts = [max(1, round(picture.tokens * stages[number])) for picture in self.pictures]
                pairs = [pair for pair in zip(self.pictures, counts, strict=True) if pair[1] < len(pair[0].rows)]
                chosen = [CHOOSE[name](self, number, picture, count, before) for picture, count in pairs]
                for (picture, _), rows in zip(pairs, chosen, strict=True):
                    self.drop(picture, rows, name)
            query, key, value = self.attention(number, self.x, self.rope, self.is_gen)
            attended = self.weights(query, key, self.sees & self.now, self.weight.log())
            self.went_through.append(int(self.now.sum()))
            self.keys.append(key)
            self.values.append(value)
            self.alive.append(self.now.clone())
            self.log_weights.append(self.weight.log())
            self.x = self.mixed(number, self.x, attended, value, self.is_gen)
            before = attended, value
        if everywhere:
            self.alive = [self.alive[-1]] * len(self.alive)
            self.log_weights = [self.log_weights[-1]] * len(self.alive)

    def drop(self, picture: Picture, chosen: list[int], name: str) -> None:
        """Leave these rows of a picture; `chosen` are rows of the sequence."""
        gone = [row for row in picture.rows if row not in chosen]
        heir = {row: max(chosen, key=lambda other: self.cosine(row, other)) for row in gone}
        if name == "trim":
            mean = max(row for row in picture.rows if row not in self.best)
            heir = dict.fromkeys(gone, mean)
            self.x[mean] = self.x[[*gone, mean]].mean(0)
        for row in gone:
            self.now[row] = False
            if self.weighed:
                self.weight[heir[row]] += self.weight[row]
        picture.places = [place for row, place in zip(picture.rows, picture.places, strict=True) if row in chosen]
        picture.rows = [row for row in picture.rows if row in chosen]

    def cosine(self, one: int, other: int) -> float:
        """Of two rows as they are now."""
        return float(torch.nn.functional.cosine_similarity(self.x[one].double(), self.x[other].double(), dim=0))

    def next(self, token: Tensor) -> Tensor:
        """The final hidden state of one more token [C], which sees in every layer what is left there."""
        x, rope, plain = token[None], torch.tensor([self.position]), torch.tensor([False])
        for number in range(len(self.decoder.layers)):
            query, key, value = self.attention(number, x, rope, plain)
            keys, values = torch.cat((self.keys[number], key)), torch.cat((self.values[number], value))
            sees = torch.cat((self.alive[number], torch.tensor([True])))[None]
            weight = torch.cat((self.log_weights[number], torch.zeros(1)))
            x = self.mixed(number, x, self.weights(query, keys, sees, weight), values, plain)
        return self.decoder.norm(x)[0]


def most(slow: Slow, scores: dict[int, float], count: int) -> list[int]:
    """The rows of the highest scores, of equal ones the first."""
    return sorted(sorted(scores, key=lambda row: (-scores[row], row))[:count])


def last_attention(weights: Tensor, picture: Picture) -> dict[int, float]:
    """What the last row pays to each visual token, mean over heads."""
    return {row: float(weights[:, -1, row].mean()) for row in picture.rows}


def fastv(slow: Slow, number: int, picture: Picture, count: int, before: tuple[Tensor, Tensor]) -> list[int]:
    """By the layer before."""
    return most(slow, last_attention(before[0], picture), count)


def window_fastv(slow: Slow, number: int, picture: Picture, count: int, before: tuple[Tensor, Tensor]) -> list[int]:
    """Round after round of the windows."""
    scores = last_attention(before[0], picture)
    windows: dict[tuple[int, int], list[int]] = {}
    for row, place in zip(picture.rows, picture.places, strict=True):
        windows.setdefault(window(picture.grid, place), []).append(row)
    chosen: list[int] = []
    while len(chosen) < count:
        heads = {}
        for rows in windows.values():
            left = [row for row in rows if row not in chosen]
            if left:
                best = most(slow, {row: scores[row] for row in left}, 1)[0]
                heads[best] = scores[best]
        chosen += most(slow, heads, min(len(heads), count - len(chosen)))
    return sorted(chosen)


def window(grid: tuple[int, int], place: int, side: int = 4) -> tuple[int, int]:
    """The window of a place in the grid; what does not fill one belongs to its neighbour."""
    row, column = divmod(place, grid[1])
    return min(row // side, max(1, grid[0] // side) - 1), min(column // side, max(1, grid[1] // side) - 1)


def by_next(slow: Slow, number: int, picture: Picture, count: int, before: object) -> list[int]:
    """By the layer that comes next, as if nothing were dropped before it."""
    query, key, _ = slow.attention(number, slow.x, slow.rope, slow.is_gen)
    weights = slow.weights(query, key, slow.sees & slow.now, slow.weight.log())
    return most(slow, last_attention(weights, picture), count)


def ivc_prune(slow: Slow, number: int, picture: Picture, count: int, before: tuple[Tensor, Tensor]) -> list[int]:
    """By values and positions."""
    value = before[1].transpose(0, 1)  # [H, n, D]
    alike = (value @ value.transpose(1, 2) / value.shape[-1] ** 0.5).softmax(-1).mean(0)  # [n, n]
    of_prompt = {row: float(alike[slow.prompt, row].mean()) for row in picture.rows}
    seeds = most(slow, of_prompt, max(1, round(0.01 * len(picture.rows))))
    score = {row: float(alike[[*seeds, *slow.prompt], row].mean()) for row in picture.rows}
    first = set(seeds)
    head = slow.decoder.sizes.head_dim
    places = slow.rope[picture.rows]
    if len(set(places.tolist())) > 1:
        angles = places[:, None].float() / slow.decoder.sizes.rope_theta ** (torch.arange(0, head, 2) / head)
        for table in (angles.cos().mean(1), angles.sin().mean(1)):
            by_row = dict(zip(picture.rows, table.tolist(), strict=True))
            first |= set(most(slow, by_row, round(0.2 * count)))
    return most(slow, {row: score[row] + (row in first) for row in picture.rows}, count)


def trim(slow: Slow, number: int, picture: Picture, count: int, before: object) -> list[int]:
    """By the embeddings of the prompt; the last of the others stands for all of them."""
    score = {row: -sum(slow.cosine(row, other) for other in slow.prompt) for row in picture.rows}
    best = set(most(slow, score, count - 1))
    slow.best |= best
    return sorted({*best, max(row for row in picture.rows if row not in best)})


CHOOSE = {
    "fastv": fastv,
    "window-fastv": window_fastv,
    "pdrop": by_next,
    "vscan": by_next,
    "ivc-prune": ivc_prune,
    "trim": trim,
}


def vscan_first(shallow: Tensor, deep: Tensor, grid: tuple[int, int], count: int) -> list[int]:
    """The first stage of VScan: half of the tokens by windows, then the best of the rest."""
    local = count // 2
    windows = {window(grid, place) for place in range(len(shallow))}
    limit = -(-local // len(windows))
    taken: dict[tuple[int, int], int] = {}
    chosen: list[int] = []
    for place in sorted(range(len(shallow)), key=lambda each: (-float(shallow[each]), each)):
        mine = window(grid, place)
        if len(chosen) < local and taken.get(mine, 0) < limit:
            taken[mine] = taken.get(mine, 0) + 1
            chosen.append(place)
    rest = sorted((each for each in range(len(deep)) if each not in chosen), key=lambda e: (-float(deep[e]), e))
    return sorted(chosen + rest[: count - len(chosen)])
