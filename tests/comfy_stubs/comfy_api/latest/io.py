"""Schemas, inputs and outputs. Signatures are strict: what ComfyUI 0.12 would refuse is refused here."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class FolderType(str, Enum):
    input = "input"
    output = "output"
    temp = "temp"


class Hidden(str, Enum):
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


class NumberDisplay(str, Enum):
    number = "number"
    slider = "slider"


@dataclass
class Input:
    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    extra_dict: dict | None = None
    raw_link: bool | None = None
    advanced: bool | None = None
    io_type = "*"


@dataclass
class Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False
    io_type = "*"


def Custom(io_type: str) -> Any:  # noqa: N802
    made = {"io_type": io_type}
    return type(
        io_type, (), {**made, "Input": type("Input", (Input,), made), "Output": type("Output", (Output,), made)}
    )


Image, Mask, Latent = Custom("IMAGE"), Custom("MASK"), Custom("LATENT")
Model, Vae, Conditioning = Custom("MODEL"), Custom("VAE"), Custom("CONDITIONING")
Guider, Noise, Sigmas = Custom("GUIDER"), Custom("NOISE"), Custom("SIGMAS")


@dataclass
class WidgetInput:
    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    default: Any = None
    socketless: bool | None = None
    force_input: bool | None = None
    extra_dict: dict | None = None
    raw_link: bool | None = None
    advanced: bool | None = None
    io_type = "*"


class Boolean:
    class Input(WidgetInput):
        io_type = "BOOLEAN"


@dataclass
class _Number(WidgetInput):
    min: float | None = None
    max: float | None = None
    step: float | None = None
    display_mode: NumberDisplay | None = None


class Int:
    @dataclass
    class Input(_Number):
        control_after_generate: bool | None = None
        io_type = "INT"


class Float:
    @dataclass
    class Input(_Number):
        round: float | None = None
        io_type = "FLOAT"


class String:
    @dataclass
    class Input(WidgetInput):
        multiline: bool = False
        placeholder: str | None = None
        io_type = "STRING"

    class Output(Output):
        io_type = "STRING"


class Combo:
    @dataclass
    class Input(WidgetInput):
        options: list[str] = field(default_factory=list)
        io_type = "COMBO"


class Autogrow:
    class TemplateNames:
        def __init__(self, input: Input, names: list[str], min: int = 1) -> None:
            self.input, self.names, self.min = input, names, min

    class Input(Input):
        io_type = "COMFY_AUTOGROW_V3"

        def __init__(
            self, id: str, template: Any, display_name: Any = None, optional: bool = False, tooltip: Any = None
        ) -> None:
            super().__init__(id, display_name, optional, tooltip)
            self.template = template

        def sockets(self) -> list[Input]:
            made = []
            for name in self.template.names:
                socket = copy(self.template.input)
                socket.id = name
                made.append(socket)
            return made


class DynamicCombo:
    class Option:
        def __init__(self, key: str, inputs: list[Any]) -> None:
            self.key, self.inputs = key, inputs

    class Input(Input):
        io_type = "COMFY_DYNAMICCOMBO_V3"

        def __init__(
            self,
            id: str,
            options: list[Any],
            display_name: Any = None,
            optional: bool = False,
            tooltip: Any = None,
            lazy: Any = None,
            extra_dict: dict | None = None,
        ) -> None:
            super().__init__(id, display_name, optional, tooltip, lazy, extra_dict)
            self.options = options


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self) -> None:
        for entries in (self.inputs, self.outputs):
            twice = [name for name, count in Counter(entry.id for entry in entries).items() if count > 1]
            if twice:
                raise ValueError(f"ids must be unique, {twice} are not")


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.result, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError
