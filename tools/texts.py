"""Makes every text that repeats what the code knows: `python -m tools.texts`, or `--check` to compare alone.

- `locales/<language>/nodeDefs.json`: names and tooltips of all nodes. English is in the schemas, Chinese in
  `tools/zh.json`; both have placeholders for what differs from model to model (`nodes/facts.py`).
- `web/docs/<node>/<language>.md`: the tables of inputs and outputs, and of the models. The rest is written by hand.
- `docs/settings.md`: all of it. Meanings are those of the docstrings, limits those that the checks name.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from tests.pack import REPOSITORY, module, nodes, pack

ENGLISH, CHINESE = "en", "zh"
HEADINGS = {
    "inputs": {ENGLISH: "Inputs", CHINESE: "输入"},
    "outputs": {ENGLISH: "Outputs", CHINESE: "输出"},
    "models": {ENGLISH: "Models", CHINESE: "模型"},
}
COLUMNS = {
    "inputs": {ENGLISH: ("Input", "Default", "What it does"), CHINESE: ("输入", "默认值", "作用")},
    "outputs": {ENGLISH: ("Output", "What it does"), CHINESE: ("输出", "作用")},
    "models": {
        ENGLISH: ("Model", "On Hugging Face", "Folder", "Files", "In bf16"),
        CHINESE: ("模型", "Hugging Face 仓库", "文件夹", "文件", "bf16 大小"),
    },
}
OWN = ("steps", "text_scale", "image_scale", "timestep_shift", "interval", "renorm", "renorm_min")


def main(arguments: Sequence[str]) -> int:
    """Write what has changed, or with `--check` say what would; 1 where the check finds something."""
    stale = [path for path, text in texts().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if list(arguments) == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(REPOSITORY)} is not what `python -m tools.texts` makes")
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts()[path], encoding="utf-8")
        print(path.relative_to(REPOSITORY))
    return 0


def texts() -> dict[Path, str]:
    """What every generated file should hold."""
    pack()
    folder_paths: Any = sys.modules["folder_paths"]
    for key in ("unified_models", "diffusion_models", "checkpoints", "vae", "loras"):
        folder_paths.add_model_folder_path(key, "nowhere")  # the loader then lists the embedded demos alone
    made = {}
    for language, words in ((ENGLISH, english()), (CHINESE, chinese())):
        made[REPOSITORY / "locales" / language / "nodeDefs.json"] = _json(words)
        for node, said in words.items():
            path = REPOSITORY / "web" / "docs" / node / f"{language}.md"
            made[path] = help_page(path.read_text(encoding="utf-8"), node, said, language)
    made[REPOSITORY / "docs" / "settings.md"] = settings_page()
    return made


# -- names and tooltips


def english() -> dict[str, Any]:
    """`nodeDefs.json` as the schemas have it."""
    return {
        node: _definition(node, kind.description, kind.display_name, lambda side, entry: (entry.id, entry.tooltip))
        for node, kind in _schemas()
    }


def chinese() -> dict[str, Any]:
    """The same from `zh.json`: an entry is looked up in the node's own words first, then in those that nodes share."""
    source = json.loads((Path(__file__).parent / "zh.json").read_text(encoding="utf-8"))
    facts = module("nodes.facts")
    phrases = facts.Phrases(**source["phrases"])
    summaries = {name: known.summary for name, known in module("g2tr_core.reduction.methods").METHODS.items()}
    title, offered = module("g2tr_core.reduction.methods").title, module("g2tr_core.reduction.methods").offered()
    methods = "".join(f"{title(name)}：{(summaries | source['methods'])[name]}" for name in offered)
    made = {}
    for node, schema in _schemas():
        own = source["nodes"][node]
        thinks = any(entry.id in ("think", "options") for entry in schema.inputs)
        known = facts.facts(getattr(nodes()[node], "TASK", "edit"), thinks, phrases) | {"methods": methods}

        def words(side: str, entry: Any, own: Any = own, known: Any = known) -> tuple[str, str]:
            number = re.fullmatch(r"image(\d+)", entry.id) if side == "inputs" else None
            key = "image#" if number else entry.id
            name, tooltip = own.get(side, {}).get(key) or source["shared"][side][key]
            return name.replace("#", number[1] if number else "#"), tooltip.format_map(known)

        description = own["description"].format_map(known)
        made[node] = _definition(node, description, own["display_name"], words, source["control_after_generate"])
    return made


def _definition(
    node: str,
    description: str,
    display_name: str,
    words: Callable[[str, Any], tuple[str, str]],
    control: str = "control after generate",
) -> dict[str, Any]:
    """One node of `nodeDefs.json`. Outputs go by number: the editor looks there for those of V3 nodes."""
    schema = dict(_schemas())[node]
    inputs: dict[str, Any] = {}
    for entry in schema.inputs:
        inputs[entry.id] = _named(*words("inputs", entry))
        for inner in _inner(entry):
            inputs[f"{entry.id}_{inner.id}"] = _named(*words("inputs", inner))
        if getattr(entry, "control_after_generate", None):
            inputs["control_after_generate"] = {"name": control}
    outputs = {str(place): _named(*words("outputs", entry)) for place, entry in enumerate(schema.outputs)}
    return {"display_name": display_name, "description": description, "inputs": inputs, "outputs": outputs}


def _inner(entry: Any) -> list[Any]:
    """The sockets of an input that grows, or the settings below the choices of one that has some, each once."""
    if hasattr(entry, "sockets"):
        return list(entry.sockets())
    found: dict[str, Any] = {}
    for choice in _choices(entry):
        for inner in choice.inputs:
            found.setdefault(inner.id, inner)
    return list(found.values())


def _choices(entry: Any) -> list[Any]:
    """The choices of an input whose settings depend on the choice."""
    return [choice for choice in getattr(entry, "options", None) or () if hasattr(choice, "inputs")]


def _named(name: str, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip}


def _schemas() -> Iterator[tuple[str, Any]]:
    return ((node, kind.define_schema()) for node, kind in nodes().items())


# -- help pages


def help_page(page: str, node: str, said: dict[str, Any], language: str) -> str:
    """A help page with its tables made anew."""
    schema = dict(_schemas())[node]

    def label(entry: Any, words: dict[str, str]) -> str:
        return f"`{entry.id}`" if language == ENGLISH else f"{words['name']} `{entry.id}`"

    rows = {
        "inputs": [
            (label(entry, said["inputs"][key]), _default(entry), said["inputs"][key]["tooltip"])
            for key, entry in _rows(schema)
        ],
        "outputs": [
            (label(entry, said["outputs"][str(place)]), said["outputs"][str(place)]["tooltip"])
            for place, entry in enumerate(schema.outputs)
        ],
        "models": list(_downloads()),
    }
    for section, headings in HEADINGS.items():
        pattern = rf"(?<=\n## {headings[language]}\n\n).*?(?=\n\n## |\n*\Z)"
        if section != "models" or re.search(pattern, page, re.S):
            table = _table(COLUMNS[section][language], rows[section])
            page, found = re.subn(pattern, lambda _, table=table: table, page, flags=re.S)  # type: ignore[misc]
            if not found:
                raise ValueError(f"the help page of {node} ({language}) has no section {headings[language]}")
    return page


def _rows(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every input, behind those that have choices the settings below them, by their key in `nodeDefs.json`."""
    for entry in schema.inputs:
        yield entry.id, entry
        if _choices(entry):
            yield from ((f"{entry.id}_{inner.id}", inner) for inner in _inner(entry))


def _default(entry: Any) -> str:
    choices = _choices(entry)
    default = choices[0].key if choices else getattr(entry, "default", None)
    if default in (None, ""):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _downloads() -> Iterator[tuple[str, ...]]:
    for known in module("g2tr_core.umm.registry").models():
        get = known.download
        yield (
            known.name,
            f"`{get.repository}`",
            f"`models/unified_models/{get.folder}`",
            ", ".join(f"`{file}`" for file in get.files),
            f"{get.gigabytes:.0f} GB",
        )


# -- all settings


def settings_page() -> str:
    """`docs/settings.md`."""
    generation, reduction = module("g2tr_core.generation.settings"), module("g2tr_core.reduction")
    columns = ("Setting", "Default", "Limits", "Meaning")
    parts = [
        "# Settings",
        "Made from the code by `python -m tools.texts`. Nodes, command and Python use the same names; the command\n"
        "writes them with hyphens, `--keep-ratio`. Where a node has 0, the last table's value holds.",
        "## Reduction: which visual tokens are kept",
        _table(columns, _settings(reduction.Reduction)),
        "## Sampling: how a picture is generated",
        _table(columns, [*_settings(generation.Sampling, "guidance"), *_settings(generation.Guidance)]),
        "## Decoding: how an answer is written",
        _table(columns, _settings(generation.Decoding)),
        "## Loading",
        "Options of the command; in ComfyUI the loader's `weights` and `vae` stand for them, and ComfyUI chooses the "
        "device.",
        _table(columns, _loading()),
        "## The models",
        _table(COLUMNS["models"][ENGLISH], _downloads()),
        "## The models' own values",
        _table(("Model", "Task", *(f"`{name}`" for name in OWN), "Longest plan"), _own_values()),
    ]
    return "\n\n".join(parts) + "\n"


def _settings(kind: type, *without: str) -> Iterator[tuple[str, ...]]:
    """Rows of a dataclass: meanings from its docstring, limits from what its checks advise when given nonsense."""
    meaning = _arguments(inspect.getdoc(kind) or "")
    error = module("g2tr_core.errors").SettingsError
    for setting in fields(kind):  # type: ignore[arg-type]
        if setting.name in without:
            continue
        nonsense: Any = (object(), object()) if isinstance(setting.default, tuple) else object()
        try:
            kind(**{setting.name: nonsense})
        except error as refused:
            limits = re.sub(r"^(Use|Choose) (a number |a whole number |one of: )?(of )?", "", refused.fix)
        else:
            raise ValueError(f"{kind.__name__}.{setting.name} is not checked")
        default = setting.default if setting.default is not MISSING else setting.default_factory()  # type: ignore[misc]
        yield (
            f"`{setting.name}`",
            f"`{_written(default)}`",
            limits,
            meaning[setting.name][0].upper() + meaning[setting.name][1:],
        )


def _arguments(doc: str) -> dict[str, str]:
    """The `Args:` of a docstring by name."""
    block = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.S | re.M)
    entries = re.split(r"^ {4}(?=\w)", block[1] if block else "", flags=re.M)[1:]
    pairs = [entry.split(":", 1) for entry in entries]
    return {name.strip(): " ".join(text.split()) for names, text in pairs for name in names.split(",")}


def _loading() -> Iterator[tuple[str, ...]]:
    options = module("g2tr_core.cli.options")
    parser: Any = options.ArgumentParser(add_help=False)
    options.loading(parser)
    for action in parser._actions:
        default = "" if action.default in (None, False) else f"`{action.default}`"
        limits = ", ".join(action.choices or [action.metavar or "given or not"])
        yield f"`{action.option_strings[0]}`", default, limits, action.help


def _own_values() -> Iterator[tuple[str, ...]]:
    registry, facts = module("g2tr_core.umm.registry"), module("nodes.facts")
    for known in registry.models():
        for task in ("edit", "imagine"):
            plain, thinking = known.sampling[task], known.thinking_sampling[task]
            kinds = [(task, plain), *([(f"{task} with `think`", thinking)] if thinking != plain else [])]
            for name, sampling in kinds:
                values = [
                    "not used" if own in known.unused_sampling else facts.written(registry.own_value(sampling, own))
                    for own in OWN
                ]
                yield known.name, name, *values, str(known.thinking.max_tokens)
    for task in ("edit", "imagine"):
        for model, own in facts.demo_settings(task).items():
            values = [facts.written(own[name]) if name in own else f"as {model}" for name in OWN]
            yield f"{model} demo", task, *values, f"as {model}"


def _written(value: Any) -> str:
    written: str = module("nodes.facts").written(value)
    return str(value).lower() if isinstance(value, bool) else written


# -- writing


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head, rule, *body = cells
    return "\n".join([f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(line)} |" for line in body)])


def _json(tree: Any) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
