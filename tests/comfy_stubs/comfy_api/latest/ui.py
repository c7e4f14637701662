"""What nodes show of themselves."""

from __future__ import annotations

from typing import Any, ClassVar


class PreviewImage:
    def __init__(self, image: Any, animated: bool = False, cls: Any = None) -> None:
        self.values, self.animated = list(image), animated


class ImageSaveHelper:
    """Writes down what it was asked to save."""

    saved: ClassVar[list[tuple[Any, str, Any]]] = []

    @staticmethod
    def save_images(
        images: Any, filename_prefix: str, folder_type: Any, cls: Any, compress_level: int = 4
    ) -> list[Any]:
        if ".." in filename_prefix:
            raise Exception("**** ERROR: Saving image outside the output folder is not allowed.")
        ImageSaveHelper.saved.append((images, filename_prefix, folder_type))
        return []
