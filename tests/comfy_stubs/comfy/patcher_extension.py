"""Functions around functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class WrappersMP:
    OUTER_SAMPLE, APPLY_MODEL, DIFFUSION_MODEL = "outer_sample", "apply_model", "diffusion_model"


class WrapperExecutor:
    def __init__(self, original: Callable[..., Any], class_obj: Any, wrappers: list[Callable[..., Any]]) -> None:
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    @classmethod
    def new_class_executor(cls, original: Any, class_obj: Any, wrappers: list[Any]) -> WrapperExecutor:
        return cls(original, class_obj, wrappers)

    def execute(self, *arguments: Any, **named: Any) -> Any:
        if not self.wrappers:
            return self.original(*arguments, **named)
        return self.wrappers[0](WrapperExecutor(self.original, self.class_obj, self.wrappers[1:]), *arguments, **named)

    __call__ = execute


def get_all_wrappers(kind: str, options: dict[str, Any], is_model_options: bool = False) -> list[Any]:
    known = options.get("wrappers", {}).get(kind, {})
    return [wrapper for each in known.values() for wrapper in each]
