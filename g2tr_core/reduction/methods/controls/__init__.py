"""Methods that nobody should use: rivals and controls that show what the latent signal is worth.

- `random`, `norm`: what costs next to nothing.
- `flipped`, `shuffled_anchors`: the paper's method with its signal turned round or torn from its place. What they
  reach, the cells alone reach.

`Reduction` takes these names; nodes and command line do not offer them.
"""
