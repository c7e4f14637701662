"""Ways in which weights lie in a file, one file a format; `registry` lists them and reads with them.

A new format is a file with a `Format` (see `format`) and a line in the registry. Its tensors are `StoredTensor`s, or a
subclass that says how they are multiplied out and what layer runs them as they are.
"""
