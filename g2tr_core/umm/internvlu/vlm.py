"""InternVL-U's eye and mind: InternViT and Qwen3 of transformers, and between them a projector and a table of our own.

Transformers' classes are built without memory, get their layers replaced by those of `operations` in one place
(`swap_layers`), and attend through this package's own KV cache, so that prompts share a prefix and no cache is copied.
Qwen3 is called with nothing but embeddings, positions and no mask, which means the same in transformers 4.57 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.kv_cache import Append, Context, KVCache
from ...nn.operations import Operations
from .config import InternVLUConfig

ATTENTION = "g2tr_cache"
SHUFFLE = 2  # ViT patches a side that become one visual token


def swap_layers(model: nn.Module, operations: Operations, **factory: Any) -> nn.Module:
    """Replace every layer with weights by its counterpart of `operations`, in place and without weights.

    What `operations` has no counterpart for becomes torch's own. Qwen3's norm is `RMSNorm` under another name.

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
    elif type(layer).__name__ == "Qwen3RMSNorm":
        made = kind("RMSNorm")(len(layer.weight), eps=layer.variance_epsilon, **factory)
    return made


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, *, block: Append, **unused: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it ([1, H, n, D] each), into and over the cache of `block`."""
    rows = (x.transpose(1, 2) for x in (query, key, value))  # [1, n, heads, D]
    return block.attend(module.layer_idx, *rows), None


def build_language_model(config: InternVLUConfig) -> nn.Module:
    """Transformers' Qwen3 on the meta device, attending through our cache."""
    from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM

    AttentionInterface.register(ATTENTION, _attend)
    settings = Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        max_position_embeddings=40960,
        tie_word_embeddings=False,
        attn_implementation=ATTENTION,
    )
    with torch.device("meta"):
        model: nn.Module = Qwen3ForCausalLM(settings)
    return model


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
        self.vision_model = swap_layers(build_vision_model(config).to(factory.get("dtype")), operations, **factory)
        self.mlp1 = nn.Sequential(
            operations.LayerNorm(joined, eps=1e-5, **factory),
            operations.Linear(joined, width, **factory),
            nn.GELU(),
            operations.Linear(width, width, **factory),
        )
        self.special_token_embedding = operations.Embedding(len(special), width, **factory)
        self.language_model: Any = swap_layers(build_language_model(config), operations, **factory)

    def materialise(self, device: torch.device) -> None:
        """Compute what no file holds, the rope's frequencies, once the weights are there."""
        rotary = self.language_model.model.rotary_emb
        self.language_model.model.rotary_emb = type(rotary)(rotary.config).to(device)

    def new_context(self, capacity: int, device: torch.device) -> Context:
        """An empty context whose cache has room for `capacity` tokens."""
        config = self.config
        cache = KVCache(
            config.layers, config.kv_heads, config.head_dim, capacity=capacity, dtype=self.compute_dtype, device=device
        )
        return cache.empty()

    def visual_features(self, tile: Tensor) -> Tensor:
        """Read one picture: tile [3, S, S] -> [N, C], row by row."""
        patches = self.vision_model(tile.to(self.compute_dtype).unsqueeze(0)).last_hidden_state[0, 1:]
        features: Tensor = self.mlp1(pixel_shuffle(patches, self.config.vit_image // self.config.vit_patch))
        return features

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
        embedded = self._words(torch.tensor(ids, device=device))
        places = [place for place, token in enumerate(ids) if token in self.special]
        rows = torch.tensor([self.special[ids[place]] for place in places], dtype=torch.long, device=device)
        signs = self.special_token_embedding(rows).to(embedded.dtype)
        embedded = embedded.index_copy(0, torch.tensor(places, dtype=torch.long, device=device), signs)
        places = [place for place, token in enumerate(ids) if token == visual_id]
        return embedded.index_copy(0, torch.tensor(places, dtype=torch.long, device=device), visual.to(embedded))

    def prefill(self, context: Context, embedded: Tensor) -> tuple[Context, Tensor, Tensor]:
        """Append [n, C] to a context: the context behind it, the last hidden states [n, C], and the states that
        condition the dit, side by side [n, kC]."""
        grown, output = self._run(context, embedded, output_hidden_states=True)
        chosen = [output.hidden_states[layer][0] for layer in self.config.condition_layers]
        return grown, output.last_hidden_state[0], torch.cat(chosen, dim=-1)

    def step(self, context: Context, token: Tensor) -> tuple[Context, Tensor]:
        """Append one written token, ids [1]: the context behind it, and logits [vocabulary] for the next."""
        grown, output = self._run(context, self._words(token))
        return grown, self.logits(output.last_hidden_state[0, -1])

    def logits(self, hidden: Tensor) -> Tensor:
        """Last hidden states [..., C] -> logits [..., vocabulary]."""
        scores: Tensor = self.language_model.lm_head(hidden)
        return scores

    def _words(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.language_model.model.embed_tokens(ids)
        return embedded.to(self.compute_dtype)

    def _run(self, context: Context, embedded: Tensor, **options: Any) -> tuple[Context, Any]:
        rows = len(embedded)
        block = context.cache.append(context, rows, advance=rows, causal=True)
        output = self.language_model.model(
            inputs_embeds=embedded.unsqueeze(0),
            position_ids=torch.arange(block.position, block.position + rows, device=embedded.device).unsqueeze(0),
            attention_mask={"full_attention": None},
            use_cache=False,
            block=block,
            **options,
        )
        return block.context, output
