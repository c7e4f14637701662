"""Generation-guided visual token reduction (G²TR): the paper as pure tensor functions.

A picture that a unified model can both understand and generate is encoded twice. The reduction keeps the understanding
tokens that agree best with the generation latent, spread over the picture, and merges the others into them. Nothing
here knows a model, reads a file or keeps state: `pool_latent` makes anchors out of the latent (the model projects them
to its own width), `reduce` does the rest.
"""

from .anchors import pool_latent
from .masks import mask_to_priority
from .methods import SELECTIONS
from .reduce import Reduced, Reduction, reduce

__all__ = ["SELECTIONS", "Reduced", "Reduction", "mask_to_priority", "pool_latent", "reduce"]
