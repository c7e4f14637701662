"""What lmms-eval finds under the entry point `lmms_eval.models`: the names of the model, without loading anything."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """One model for every checkpoint that `umm.load` knows, told apart by `pretrained`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "g2tr_core.lab.harnesses.lmms_model.G2TR"
    return [ModelManifest("g2tr", simple_class_path=path, aliases=("g2tr_bagel", "g2tr_internvlu"))]
