"""How many bytes of tensors live at once while code runs, on any device, `meta` included."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Adds up storages that operators make, and takes them off again when their last tensor goes.

    What one operator uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._tensors: Counter[int] = Counter()  # of each storage
        self._given: set[int] = set()  # storages from outside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and account for what it returns."""
        taken = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        self._given |= {storage for storage in taken if storage not in self._tensors}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and _storage(value) not in self._given:
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if storage not in self._tensors:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._tensors[storage] += 1
        weakref.finalize(tensor, self._remove, storage, size)

    def _remove(self, storage: int, size: int) -> None:
        self._tensors[storage] -= 1
        if not self._tensors[storage]:
            del self._tensors[storage]
            self.now -= size


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
