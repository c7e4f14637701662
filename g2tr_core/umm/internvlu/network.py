"""All weights of InternVL-U but the autoencoder's: InternViT, projector, Qwen3, special tokens (`vlm`), and the DiT.

The ViT is transformers' class, built without memory; its layers are replaced by those of `operations` in one place
(`swap_layers`). The language model is the decoder that all models here share, so that prompts share a KV prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.attention import attention_received
from ...nn.blocks import Block
from ...nn.decoder import LanguageModel, Prefilled
from ...nn.kv_cache import KVPrefix
from ...nn.operations import Operations, loaded
from ...nn.pruning import Pruning
from .config import InternVLUConfig
from .dit import GenerationDecoder

SHUFFLE = 2  # ViT patches a side that become one visual token


def swap_layers(model: nn.Module, operations: Operations, **factory: Any) -> nn.Module:
    """Replace every layer with weights by its counterpart of `operations`, in place and without weights.

    What `operations` has no counterpart for becomes torch's own.

    Args:
        model: on the meta device.
        operations: where layers come from.
        factory: `dtype` and `device` of the new layers.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            made = _counterpart(child, operations, factory)
            if made is not None:
                setattr(parent, name, made)
    return model


def _counterpart(layer: Any, operations: Operations, factory: dict[str, Any]) -> nn.Module | None:
    def kind(name: str) -> Any:
        return getattr(operations, name, None) or getattr(nn, name)

    made: nn.Module | None = None
    if isinstance(layer, nn.Linear):
        made = kind("Linear")(layer.in_features, layer.out_features, bias=layer.bias is not None, **factory)
    elif isinstance(layer, nn.Embedding):
        made = kind("Embedding")(layer.num_embeddings, layer.embedding_dim, **factory)
    elif isinstance(layer, nn.LayerNorm):
        made = kind("LayerNorm")(layer.normalized_shape, eps=layer.eps, **factory)
    elif isinstance(layer, nn.Conv2d):
        made = kind("Conv2d")(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            bias=layer.bias is not None,
            **factory,
        )
    return made


def build_vision_model(config: InternVLUConfig) -> nn.Module:
    """Transformers' InternViT on the meta device, with PyTorch's own attention."""
    from transformers import InternVLVisionConfig, InternVLVisionModel

    settings = InternVLVisionConfig(
        hidden_size=config.vit_hidden_size,
        intermediate_size=config.vit_intermediate_size,
        num_hidden_layers=config.vit_layers,
        num_attention_heads=config.vit_heads,
        attention_bias=True,
        layer_norm_eps=config.vit_norm_eps,
        image_size=[config.vit_image, config.vit_image],
        patch_size=[config.vit_patch, config.vit_patch],
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model: nn.Module = InternVLVisionModel(settings)
    return model


def pixel_shuffle(features: Tensor, side: int) -> Tensor:
    """Join blocks of 2 x 2 patches: [side², C] -> [(side/2)², 4·C]; inside a token: row, column, channel."""
    blocks = features.unflatten(0, (side // SHUFFLE, SHUFFLE, side // SHUFFLE, SHUFFLE))  # [h, p, w, q, C]
    return blocks.transpose(1, 2).flatten(2).flatten(0, 1)


class VisionLanguageModel(nn.Module):
    """InternViT, projector, Qwen3, and the table of special tokens.

    Args:
        config: sizes.
        special: ids of the tokens that have a row of the table, in its order.
        operations: where layers come from.
        compute_dtype: of activations, and so of KV caches.
        factory: `dtype` and `device` of the weights.
    """

    def __init__(
        self,
        config: InternVLUConfig,
        special: Sequence[int],
        *,
        operations: Operations,
        compute_dtype: torch.dtype,
        **factory: Any,
    ) -> None:
        super().__init__()
        width, joined = config.hidden_size, config.vit_hidden_size * SHUFFLE**2
        self.config, self.compute_dtype = config, compute_dtype
        self.special = {token: row for row, token in enumerate(special)}
        self.vision_model: Any = swap_layers(build_vision_model(config).to(factory.get("dtype")), operations, **factory)
        self.mlp1 = nn.Sequential(
            operations.LayerNorm(joined, eps=1e-5, **factory),
            operations.Linear(joined, width, **factory),
            nn.GELU(),
            operations.Linear(width, width, **factory),
        )
        self.special_token_embedding = operations.Embedding(len(special), width, **factory)
        self.language_model = LanguageModel(
            config, operations, generates=False, qkv_bias=False, compute_dtype=compute_dtype, **factory
        )

    def visual_features(self, tile: Tensor) -> Tensor:
        """Read one picture: tile [3, S, S] -> [N, C], row by row."""
        patches = self.vision_model(tile.to(self.compute_dtype).unsqueeze(0)).last_hidden_state[0, 1:]
        features: Tensor = self.mlp1(pixel_shuffle(patches, self.config.vit_image // self.config.vit_patch))
        return features

    def vit_attention(self, tile: Tensor, depth: float = 1.0) -> Tensor:
        """How much attention each visual token receives in a layer of the ViT, its four patches together.

        Args:
            tile: [3, S, S].
            depth: which layer, as a share of all.

        Returns:
            [N] fp32; what the class token receives is left out.
        """
        layers: Any = self.vision_model.encoder.layer
        attention = layers[max(1, round(depth * len(layers))) - 1].attention
        inputs: list[Tensor] = []
        hook = attention.q_proj.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
        self.vision_model(tile.to(self.compute_dtype).unsqueeze(0))
        hook.remove()
        heads = (self.config.vit_heads, -1)
        query, key = (
            norm(project(inputs[0])).unflatten(-1, heads)[0]
            for norm, project in ((attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj))
        )
        patches = attention_received(query, key)[1:, None]
        return pixel_shuffle(patches, self.config.vit_image // self.config.vit_patch).sum(dim=1)

    def embed(self, ids: Sequence[int], visual: Tensor, visual_id: int) -> Tensor:
        """A piece of a prompt as the decoder takes it.

        Args:
            ids: [n] tokens.
            visual: [K, C] visual tokens, one for each `visual_id` among them, in order.
            visual_id: the token that stands for one.

        Returns:
            [n, C]; special tokens from their own table, as in the published prefill.
        """
        device = visual.device
        embedded = self.language_model.embed(torch.tensor(ids, device=device))
        places = [place for place, token in enumerate(ids) if token in self.special]
        rows = torch.tensor([self.special[ids[place]] for place in places], dtype=torch.long, device=device)
        signs = self.special_token_embedding(rows).to(embedded.dtype)
        embedded = embedded.index_copy(0, torch.tensor(places, dtype=torch.long, device=device), signs)
        places = [place for place, token in enumerate(ids) if token == visual_id]
        return embedded.index_copy(0, torch.tensor(places, dtype=torch.long, device=device), visual.to(embedded))

    def prefill(
        self,
        prefix: KVPrefix,
        embedded: Tensor,
        pictures: Sequence[tuple[int, int]] = (),
        pruning: Pruning | None = None,
        tell: Callable[[int, int], None] | None = None,
        log_weight: Tensor | None = None,
    ) -> tuple[Prefilled, Tensor, Tensor]:
        """Append a piece of a prompt to a prefix.

        Args:
            prefix: stays as it is.
            embedded: [n, C].
            pictures: with `pruning`, the rows (first, behind last) of each picture's visual tokens.
            pruning: drops some of these on the way through the layers.
            tell: see `Decoder.prefill`.
            log_weight: [n] fp32, see `nn.attention.KeyValues`.

        Returns:
            What the prefill left, the last token's hidden state [C], and the states that condition the DiT, side by
            side [n', kC], for the rows that the last layer still has.
        """
        last = self.config.layers
        blocks = self._blocks(embedded, pictures if pruning is not None else (), log_weight)
        hidden = {last, *self.config.condition_states}
        done = self.language_model.model.prefill(prefix, blocks, hidden=hidden, pruning=pruning, tell=tell)
        states = [done.hidden[state] for state in self.config.condition_states]
        return done, done.hidden[last][-1], torch.cat(states, dim=-1)

    @staticmethod
    def _blocks(embedded: Tensor, pictures: Sequence[tuple[int, int]], log_weight: Tensor | None) -> list[Block]:
        """A prompt is causal throughout; where a method is to prune pictures, each of them is a block of its own."""
        cuts = sorted({0, len(embedded), *(end for picture in pictures for end in picture)})
        blocks = []
        for first, behind in pairwise(cuts):
            rows = behind - first
            ids = torch.arange(rows, device=embedded.device)
            tokens = (0, rows) if (first, behind) in pictures else None
            und = embedded[None, first:behind]
            weight = None if log_weight is None else log_weight[first:behind]
            blocks.append(Block(und, None, ids, advance=rows, causal=True, log_weight=weight, tokens=tokens))
        return blocks


class InternVLUNetwork(nn.Module):
    """Both halves of the release, under the names of its folders.

    Args:
        config: sizes.
        special: ids of the tokens that have a row of the special table, in its order.
        operations: where layers come from, `torch.nn` or ComfyUI's `comfy.ops`.
        compute_dtype: of activations, and so of KV caches.
        factory: `dtype` and `device` of the weights.
    """

    def __init__(
        self,
        config: InternVLUConfig,
        special: Sequence[int],
        *,
        operations: Operations = loaded,
        compute_dtype: torch.dtype = torch.float32,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.vlm = VisionLanguageModel(config, special, operations=operations, compute_dtype=compute_dtype, **factory)
        self.generation_decoder = GenerationDecoder(config, operations, **factory)
