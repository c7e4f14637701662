"""From a short description of a template to the two files that ComfyUI takes: the editor's and the API's.

Nodes lie in columns, from left to right and from top to bottom: two rows or three, so that "fit view" on an ordinary
screen shows them at a size at which text is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.pack import nodes

TITLE, GAP = 30, 40  # pixels of a node's head, and between nodes
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
NOTE, NOTE_SIZE = "MarkdownNote", (350, 860)
ALWAYS_VISIBLE = 6  # the shape that the editor gives to outputs that are lists
OPTIONAL = 7  # and to inputs that may stay empty


@dataclass(frozen=True)
class Link:
    """An output of another node of the template, by the names of both."""

    node: str
    output: str


@dataclass(frozen=True)
class Node:
    """A node of a template.

    Args:
        kind: its class.
        height: in pixels, without its head.
        inputs: values and links by the name of the input; the others have the schema's defaults.
        models: files that a loader needs, as ComfyUI's notice of missing models takes them.
    """

    kind: str
    height: int
    inputs: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Column:
    """Nodes one below the other, by names that links use."""

    width: int
    nodes: Mapping[str, Node]


@dataclass(frozen=True)
class Slot:
    """An input or an output of a schema."""

    name: str
    type: str
    optional: bool = False
    default: Any = None
    is_list: bool = False
    then: str = ""  # what the editor does with a seed after a run

    @property
    def widget(self) -> bool:
        """Whether the editor shows it as something to fill in."""
        return self.type in WIDGETS


CORE: dict[str, tuple[list[Slot], list[Slot]]] = {  # ComfyUI's own nodes: inputs and outputs
    "SaveImage": ([Slot("images", "IMAGE"), Slot("filename_prefix", "STRING")], [Slot("images", "IMAGE")]),
    "PreviewImage": ([Slot("images", "IMAGE")], [Slot("images", "IMAGE")]),
    "PreviewAny": ([Slot("source", "*")], [Slot("STRING", "STRING")]),
    "ImageColorToMask": ([Slot("image", "IMAGE"), Slot("color", "INT")], [Slot("MASK", "MASK")]),
    "GrowMask": (
        [Slot("mask", "MASK"), Slot("expand", "INT"), Slot("tapered_corners", "BOOLEAN")],
        [Slot("MASK", "MASK")],
    ),
    "VAEDecode": ([Slot("samples", "LATENT"), Slot("vae", "VAE")], [Slot("IMAGE", "IMAGE")]),
    "VAEEncode": ([Slot("pixels", "IMAGE"), Slot("vae", "VAE")], [Slot("LATENT", "LATENT")]),
    "RepeatLatentBatch": ([Slot("samples", "LATENT"), Slot("amount", "INT")], [Slot("LATENT", "LATENT")]),
    "SetLatentNoiseMask": ([Slot("samples", "LATENT"), Slot("mask", "MASK")], [Slot("LATENT", "LATENT")]),
    "KSamplerSelect": ([Slot("sampler_name", "COMBO")], [Slot("SAMPLER", "SAMPLER")]),
    "ImageCompositeMasked": (
        [
            *(Slot("destination", "IMAGE"), Slot("source", "IMAGE"), Slot("x", "INT"), Slot("y", "INT")),
            *(Slot("resize_source", "BOOLEAN"), Slot("mask", "MASK", optional=True)),
        ],
        [Slot("IMAGE", "IMAGE")],
    ),
    "SamplerCustomAdvanced": (
        [
            *(Slot("noise", "NOISE"), Slot("guider", "GUIDER"), Slot("sampler", "SAMPLER")),
            *(Slot("sigmas", "SIGMAS"), Slot("latent_image", "LATENT")),
        ],
        [Slot("output", "LATENT"), Slot("denoised_output", "LATENT")],
    ),
    "KSampler": (
        [
            *(
                Slot("model", "MODEL"),
                Slot("seed", "INT", then="randomize"),
                Slot("steps", "INT"),
                Slot("cfg", "FLOAT"),
            ),
            *(Slot("sampler_name", "COMBO"), Slot("scheduler", "COMBO"), Slot("positive", "CONDITIONING")),
            *(Slot("negative", "CONDITIONING"), Slot("latent_image", "LATENT"), Slot("denoise", "FLOAT")),
        ],
        [Slot("LATENT", "LATENT")],
    ),
    NOTE: ([], []),
}


def prompt(columns: Sequence[Column]) -> dict[str, Any]:
    """What the API takes: every node by number, with all its inputs."""
    numbers = _numbers(columns)
    made = {}
    for name, node in _nodes(columns):
        inputs, _ = _slots(node)
        values = {slot.name: node.inputs.get(slot.name, slot.default) for slot in inputs if slot.widget}
        links = {slot: _target(columns, link) for slot, link in node.inputs.items() if isinstance(link, Link)}
        made[str(numbers[name])] = {"class_type": node.kind, "inputs": values | links}
    return made


def graph(columns: Sequence[Column], note: str) -> dict[str, Any]:
    """What the editor takes, with a note at the left."""
    numbers = _numbers(columns)
    links: list[list[Any]] = []
    made: list[dict[str, Any]] = []
    x = NOTE_SIZE[0] + GAP
    taken: dict[tuple[int, int], list[int]] = {}  # links by node and output
    for column in columns:
        y = TITLE
        for name, node in column.nodes.items():
            sockets: list[dict[str, Any]] = []
            for slot in [slot for slot in _slots(node)[0] if not slot.widget]:
                source = node.inputs.get(slot.name)
                number = None
                if isinstance(source, Link):
                    number, (start, place) = len(links) + 1, _target(columns, source)
                    links.append(
                        [number, int(start), place, numbers[name], len(sockets), _output(columns, source).type]
                    )
                    taken.setdefault((int(start), place), []).append(number)
                shape = {"shape": OPTIONAL} if slot.optional else {}
                sockets.append({"name": slot.name, "type": slot.type, "link": number, **shape})
            made.append(_editor_node(numbers[name], node, (x, y), (column.width, node.height), sockets))
            y += node.height + GAP + TITLE
        x += column.width + GAP
    for entry in made:
        for place, output in enumerate(entry["outputs"]):
            output["links"] = taken.get((entry["id"], place))
    text = Node(NOTE, NOTE_SIZE[1])
    made.append(_editor_node(len(made) + 1, text, (0, TITLE), NOTE_SIZE, []) | {"color": "#432", "bgcolor": "#653"})
    made[-1]["widgets_values"] = [note]
    return {
        "revision": 0,
        "last_node_id": len(made),
        "last_link_id": len(links),
        "nodes": made,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _editor_node(
    number: int, node: Node, at: tuple[int, int], size: tuple[int, int], sockets: list[dict[str, Any]]
) -> dict[str, Any]:
    inputs, outputs = _slots(node)
    values: list[Any] = []
    for slot in inputs:
        if slot.widget:
            values += [node.inputs.get(slot.name, slot.default), *([slot.then] if slot.then else [])]
    return {
        "id": number,
        "type": node.kind,
        "pos": list(at),
        "size": list(size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": sockets,
        "outputs": [
            {"name": slot.name, "type": slot.type, **({"shape": ALWAYS_VISIBLE} if slot.is_list else {})}
            for slot in outputs
        ],
        "properties": {"Node name for S&R": node.kind, **({"models": list(node.models)} if node.models else {})},
        "widgets_values": values,
    }


def _slots(node: Node) -> tuple[list[Slot], list[Slot]]:
    """Inputs in the order of the editor, of a growing one those that are linked and the next, of a
    choice the settings below it; outputs."""
    if node.kind in CORE:
        return CORE[node.kind]
    schema = nodes()[node.kind].define_schema()
    entries = sorted(schema.inputs, key=lambda entry: bool(entry.optional))
    inputs = [slot for entry in entries for slot in _entry(entry, node)]
    unknown = set(node.inputs) - {slot.name for slot in inputs}
    if unknown:
        raise ValueError(f"{node.kind} has no {', '.join(sorted(unknown))}")
    return inputs, [Slot(out.id, out.io_type, is_list=bool(out.is_output_list)) for out in schema.outputs]


def _entry(entry: Any, node: Node) -> Iterator[Slot]:
    choices = [choice for choice in getattr(entry, "options", None) or () if hasattr(choice, "inputs")]
    if choices:
        key = node.inputs.get(entry.id, choices[0].key)
        yield Slot(entry.id, entry.io_type, default=choices[0].key)
        for inner in next(choice.inputs for choice in choices if choice.key == key):
            yield Slot(f"{entry.id}.{inner.id}", inner.io_type, default=inner.default)
    elif not hasattr(entry, "sockets"):
        default, then = getattr(entry, "default", None), getattr(entry, "control_after_generate", None)
        then = "randomize" if then is True else then or ""
        yield Slot(entry.id, entry.io_type, bool(entry.optional), default, then=then)
    else:
        linked = sum(name.startswith(f"{entry.id}.") for name in node.inputs)
        for index, socket in enumerate(entry.sockets()[: linked + 1]):
            yield Slot(f"{entry.id}.{socket.id}", socket.io_type, index >= entry.template.min)


def _nodes(columns: Sequence[Column]) -> Iterator[tuple[str, Node]]:
    return (pair for column in columns for pair in column.nodes.items())


def _numbers(columns: Sequence[Column]) -> dict[str, int]:
    return {name: number for number, (name, _) in enumerate(_nodes(columns), 1)}


def _target(columns: Sequence[Column], link: Link) -> list[Any]:
    """A link as the API has it: number of the node and place of the output."""
    outputs = _slots(dict(_nodes(columns))[link.node])[1]
    return [str(_numbers(columns)[link.node]), [slot.name for slot in outputs].index(link.output)]


def _output(columns: Sequence[Column], link: Link) -> Slot:
    return next(slot for slot in _slots(dict(_nodes(columns))[link.node])[1] if slot.name == link.output)
