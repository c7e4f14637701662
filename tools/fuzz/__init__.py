"""Random attack: `python -m tools.fuzz` makes damaged files, odd settings and odd commands, and says what broke.

A case is made of its kind and its seed alone, so that `--case pictures:17` shows it again. A kind is one file here
with a function `case(rng, folder)`, which works inside the empty `folder`, returns where all is well, and raises
`G2TRError` where the input was refused as it should be. Everything else that it raises is a failure. So are what
`worker` sees (a process that was started, a file that was written elsewhere) and what `pool` sees (a hang, a crash,
too much memory).
"""
