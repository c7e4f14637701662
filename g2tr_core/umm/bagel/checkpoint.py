"""From files to a loaded BAGEL: released folders, shards, and single-file repacks, quantised or not."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...checkpoints.configuration import header_of
from ...checkpoints.formats.registry import read_weights
from ...checkpoints.load_config import LoadConfig, load_network
from ...checkpoints.stored import StoredTensor, files_of
from ...checkpoints.tokenizer import check_vocabulary
from ...errors import CheckpointError, shown
from ...files import path_of
from ...generation.settings import Sampling
from ..deferred import Deferred
from ..registry import ImageTask
from .config import VIT, BagelConfig, ResizeRule, read_config, read_sampling, vae_groups
from .facts import BAGEL
from .layout import GET_BAGEL, find_parts
from .network import BagelNetwork, SpecialTokens
from .tokenizer import find_tokenizer, special_tokens
from .vae import Autoencoder, load_autoencoder

UNUSED = re.compile(rf"^{re.escape(VIT)}head\.|rotary_emb\.inv_freq$|position_ids$")  # of other models

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Everything of a BAGEL, loaded, in evaluation mode, without gradients.

    Args:
        config: sizes.
        network: all weights but the autoencoder's.
        vae: the autoencoder.
        tokenizer: a transformers tokenizer.
        tokens: ids of the framing tokens.
        sampling: how it generates where nobody says otherwise.
    """

    config: BagelConfig
    network: BagelNetwork
    vae: Autoencoder | Deferred[Autoencoder]
    tokenizer: Any
    tokens: SpecialTokens
    sampling: Mapping[ImageTask, Sampling] = field(default_factory=lambda: BAGEL.sampling)


def load_parts(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    tokenizers: Sequence[Path] = (),
    vae_resize: ResizeRule | None = None,
    vit_resize: ResizeRule | None = None,
    **options: Any,
) -> Parts:
    """Load a BAGEL.

    Args:
        path: a folder, or the network's file; what the file lacks is taken from its folder.
        vae: file or folder of the autoencoder, where it is not with the network.
        tokenizer: folder of the tokenizer files, where they are not with the network.
        tokenizers: folders of tokenizers of this or other models, for a network without one: the first that fits.
        vae_resize, vit_resize: picture sizes that go before those of the checkpoint.
        options: types and device; see `checkpoints.load_config.LoadConfig`.

    Raises:
        CheckpointError: a file is missing, damaged, quantised in an unknown way, or of another model.
        SettingsError: a type or device cannot be used.
    """
    load_config = LoadConfig(**options)
    separate = None if vae is None else path_of(vae, "vae", CheckpointError)
    parts = find_parts(path_of(path, "model", CheckpointError), separate)
    where = files_of(parts.network)
    stored = read_weights({name: tensor for name, tensor in parts.network.items() if not UNUSED.search(name)})
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    header = header_of(parts.metadata, where)
    files = header["files"]
    config = read_config(shapes, where, parts.folder, header=files, vae_resize=vae_resize, vit_resize=vit_resize)
    sampling = read_sampling(parts.folder / "config.json", files)
    home = parts.folder if tokenizer is None else path_of(tokenizer, "tokenizer", CheckpointError)
    words, home = find_tokenizer(home, [] if tokenizer else tokenizers, header, config.vocab_size)
    tokens = special_tokens(words, home)
    check_vocabulary(words, home, config.vocab_size, where)
    build = partial(BagelNetwork, config, tokens)
    weights = _without_unused(stored, parts.network, config)
    fix = f"{GET_BAGEL}; for one shard of several, give their folder"
    network = load_network(build, weights, load_config, model="BAGEL", fix=fix)
    groups = vae_groups(parts.folder / "config.json", files)
    deferred = Deferred(
        lambda: load_autoencoder(parts.autoencoder, load_config.of_vae, load_config.home, groups=groups)
    )
    return Parts(config, network, deferred if load_config.defer_vae else deferred.value, words, tokens, sampling)


def _without_unused(
    read: Mapping[str, StoredTensor], stored: Mapping[str, StoredTensor], config: BagelConfig
) -> dict[str, StoredTensor]:
    """Leave out what repacks keep of the models that BAGEL was made from, and say so; `stored` is all there was."""

    def beyond(name: str) -> bool:
        layer = re.match(re.escape(VIT) + r"encoder\.layers\.(\d+)\.", name)
        return layer is not None and int(layer[1]) >= config.vit_layers

    left_out = [name for name in stored if UNUSED.search(name) or beyond(name)]
    if left_out:
        what = "%s: left out %d tensors that are no part of BAGEL (%s, ...)"
        logger.warning(what, files_of(stored), len(left_out), shown(left_out[0]))
    return {name: tensor for name, tensor in read.items() if not beyond(name)}
