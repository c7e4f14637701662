"""Methods that drop tokens inside the decoder: kept tokens and logits are those of plain attention with masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from g2tr_core.embedded import INTERNVLU, PHOTO, SCENES
from g2tr_core.generation.settings import Decoding, Sampling
from g2tr_core.nn.blocks import Block
from g2tr_core.nn.decoder import Decoder
from g2tr_core.nn.rope import rotary_table, rotate
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.contract import InDecoder, LayerView
from g2tr_core.reduction.methods import METHODS
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.pruning import PicturePruning
from tests.goldens import BAGEL_TINY

NAME = "most-attended"
SCENE = SCENES / "scene-1.png"


def most_attended(view: LayerView, count: int) -> Tensor:
    """The tokens that the prompt's last token attends to most, as FastV ranks them (head mean)."""
    assert view.attention is not None
    return view.attention.mean(0).topk(count).indices.sort().values


METHOD = InDecoder(
    name=NAME,
    summary="Keeps what the prompt attends to most.",
    needs=frozenset({"question", "decoder_attention"}),
    colour="tab:pink",
    layers=lambda layers, ratio: {1: ratio},
    select=most_attended,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, NAME, METHOD)


def half() -> Reduction:
    return Reduction(keep_ratio=0.5, min_tokens=1, method=NAME)


@pytest.fixture(scope="module", params=[BAGEL_TINY, INTERNVLU], ids=["bagel", "internvlu"])
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    return load(request.param, dtype=torch.float32)


def reference(decoder: Decoder, blocks: list[Block], picture: int, count: int) -> tuple[Tensor, Tensor]:
    """One sequence, full attention matrices, explicit masks: which visual tokens stay, and the last hidden state."""
    x = torch.cat([block.und[0] for block in blocks])
    lengths = [block.rows for block in blocks]
    owner = torch.arange(len(blocks)).repeat_interleave(torch.tensor(lengths))
    ids, position = [], 0
    for block in blocks:
        ids.append((block.rope_ids + position).expand(block.rows))
        position += block.advance
    rope, causal = torch.cat(ids), torch.tensor([block.causal for block in blocks])[owner]
    index = torch.arange(len(x))
    seen = (index[None] <= index[:, None]) | ((owner[None] == owner[:, None]) & ~causal[:, None])
    first, behind = blocks[picture].tokens
    start = sum(lengths[:picture])
    weights = torch.empty(0)
    alive, kept = torch.ones(len(x), dtype=torch.bool), torch.arange(behind - first)
    for number, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        table = rotary_table(rope, attention.head_dim, decoder.sizes.rope_theta)
        normed = layer.input_layernorm(x[None])
        query = rotate(attention.q_norm(attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim))), table)[0]
        key = rotate(attention.k_norm(attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim))), table)[0]
        value = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))[0]
        if number == 1:
            chosen = weights[:, -1, start + first : start + behind].mean(0).topk(count).indices.sort().values
            kept, alive[start + first : start + behind] = chosen, False
            alive[start + first + chosen] = True
        repeat = query.shape[1] // key.shape[1]
        scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(repeat, 1)) / attention.head_dim**0.5
        weights = scores.masked_fill(~(seen & alive[None]), -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(repeat, 1)).flatten(1)
        x = x + attention.o_proj(mixed)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return kept, decoder.norm(x)[-1]


@torch.inference_mode()
@pytest.mark.parametrize("picture_is_causal", [True, False])
def test_kept_tokens_and_logits_are_those_of_masked_attention(model: UnifiedModel, picture_is_causal: bool) -> None:
    decoder = (getattr(model.network, "vlm", model.network)).language_model.model
    width, generator = decoder.sizes.hidden_size, torch.Generator().manual_seed(0)

    def block(rows: int, *, picture: bool) -> Block:
        und = torch.randn(1, rows, width, generator=generator)
        one = picture and not picture_is_causal
        ids = torch.zeros(1, dtype=torch.long) if one else torch.arange(rows)
        advance, causal = (1, False) if one else (rows, True)
        return Block(und, None, ids, advance, causal, tokens=(1, rows - 1) if picture else None)

    blocks = [block(5, picture=False), block(14, picture=True), block(6, picture=False)]
    pruning = PicturePruning(METHOD, half(), [(3, 4)], [None], decoder.sizes.layers)
    empty = (getattr(model.network, "vlm", model.network)).language_model.empty(40, model.device)
    done = decoder.prefill(empty, blocks, hidden={decoder.sizes.layers}, pruning=pruning)
    kept, last = reference(decoder, blocks, 1, 6)
    assert pruning.kept[0].tolist() == kept.tolist()
    torch.testing.assert_close(done.hidden[decoder.sizes.layers][-1], last, atol=2e-4, rtol=2e-4)
    assert done.prefix.rows_by_layer == (25, *[19] * (decoder.sizes.layers - 1))
    assert [rows[:2] for rows in done.rows] == [[5, 5], [14, 8], [6, 6]]


def test_every_prompt_reads_anew_and_the_report_counts_by_layer(model: UnifiedModel) -> None:
    reading = model.read(PHOTO, half())
    assert not model.cost.prefill_flops([]).before and "chooses visual tokens by the prompt" in reading.report.notes[0]
    assert reading.report.kv_bytes.after == 0 and "vae_encode" not in reading.report.ms
    answer = model.answer(reading, "What is this?", decoding=Decoding(3))
    layers, tokens = model.config.layers, reading.visual_tokens.before
    kept = round(tokens / 2)
    assert answer.report.visual_tokens.after == round((tokens + (layers - 1) * kept) / layers)
    full = model.answer(model.read(PHOTO), "What is this?", decoding=Decoding(3))
    saved = full.report.kv_bytes.after - answer.report.kv_bytes.after
    assert saved == (layers - 1) * (tokens - kept) * model.cost.kv_bytes_a_layer
    assert answer.report.kv_bytes.before == full.report.kv_bytes.after
    assert model.answer(reading, "What is this?", decoding=Decoding(3)).text == answer.text


def test_edits_choose_by_their_instruction(model: UnifiedModel) -> None:
    reading, few = model.read([PHOTO, SCENE], half(), purpose="edit"), Sampling(steps=2)
    edited = model.edit(reading, "Make it red.", few, size=(64, 64))
    assert edited.report.visual_tokens.after < reading.visual_tokens.before
    other = model.edit(reading, "Swap the two pictures, and make everything blue.", few, size=(64, 64))
    assert edited.latent.isfinite().all() and not torch.equal(edited.latent, other.latent)


def test_all_tokens_kept_is_the_plain_path(model: UnifiedModel) -> None:
    whole = Reduction(keep_ratio=1.0, method=NAME)
    question = {"question": "What is this?", "decoding": Decoding(4)}
    plain = model.answer(model.read(PHOTO), **question)
    assert model.answer(model.read(PHOTO, whole), **question).text == plain.text


def test_protected_tokens_reach_the_method(model: UnifiedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noting(view: LayerView, count: int) -> Tensor:
        seen.append(view)
        return most_attended(view, count)

    monkeypatch.setitem(METHODS, NAME, InDecoder(**{**vars(METHOD), "select": noting}))
    mask = F.pad(torch.ones(4, 8), (0, 0, 0, 4))  # the upper half
    model.answer(model.read(PHOTO, half(), priority=[mask]), "What?", decoding=Decoding(1))
    (view,) = seen
    rows, columns = view.grid
    assert view.priority.reshape(rows, columns)[0].eq(1).all() and view.priority.reshape(rows, columns)[-1].eq(0).all()
    assert view.attention.shape[-1] == len(view.positions) == rows * columns == len(view.hidden)
