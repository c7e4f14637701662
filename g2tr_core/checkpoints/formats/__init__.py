"""Ways in which weights lie in a file, one file a format; `registry` lists them and reads with them.

A new format is a file with a `Format` (see `format`) and a line in the registry. What it packs becomes `PackedTensor`s,
which name what multiplies them out, in `nn.packings`.
"""
