"""Generation-guided visual token reduction (G²TR): the paper as pure tensor functions.

A picture that a unified model can both understand and generate is encoded twice. The reduction keeps the understanding
tokens that agree best with the generation latent, spread over the picture, and merges the others into them. Nothing
here knows a model, reads a file or keeps state: `pool_latent` makes anchors out of the latent (the model projects them
to its own width), `reduce` does the rest.
"""

from .anchors import pool_latent
from .importance import importance_on_grid
from .reduce import Reduced, Reduction, reduce
from .selections import SELECTIONS

__all__ = ["SELECTIONS", "Reduced", "Reduction", "importance_on_grid", "pool_latent", "reduce"]
