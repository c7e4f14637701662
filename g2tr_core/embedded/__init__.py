"""What travels with the package, so that everything runs with no download.

- `coffee.jpg`, a cup of coffee on a wooden table, 600x400: CC0, photograph by Rachel Michetti, courtesy of Pikolo
  Espresso Bar (`skimage.data.coffee` of scikit-image 0.26.0, whose docstring states the licence), recompressed as JPEG.
- `bagel-tiny/`, a BAGEL checkpoint in the released layout at a tiny size (plus `vae_config.json`, the sizes of its
  autoencoder), made for this project and under its licence. The weights are random: answers and pictures are noise
  until a trained one replaces it.
- `internvlu-tiny/`, the same for InternVL-U.
"""

from __future__ import annotations

from pathlib import Path

PHOTO = Path(__file__).parent / "coffee.jpg"
CHECKPOINT = Path(__file__).parent / "bagel-tiny"
INTERNVLU = Path(__file__).parent / "internvlu-tiny"
