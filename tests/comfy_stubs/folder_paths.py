"""Where models, pictures and results are. The tests point these at folders of their own."""

from __future__ import annotations

from pathlib import Path

models_dir = "/nowhere/models"
input_directory, output_directory = "/nowhere/input", "/nowhere/output"
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}


def add_model_folder_path(folder: str, path: str, is_default: bool = False) -> None:
    paths, _ = folder_names_and_paths.setdefault(folder, ([], set()))
    if path not in paths:
        paths.insert(0 if is_default else len(paths), path)


def get_folder_paths(folder: str) -> list[str]:
    return folder_names_and_paths[folder][0][:]


def get_filename_list(folder: str) -> list[str]:
    paths, extensions = folder_names_and_paths[folder]
    return sorted(
        str(file.relative_to(path))
        for path in paths
        for file in Path(path).rglob("*")
        if file.is_file() and (not extensions or file.suffix in extensions)
    )


def get_full_path(folder: str, name: str) -> str | None:
    found = [str(Path(path) / name) for path in get_folder_paths(folder) if (Path(path) / name).is_file()]
    return found[0] if found else None


def get_input_directory() -> str:
    return input_directory


def get_output_directory() -> str:
    return output_directory
