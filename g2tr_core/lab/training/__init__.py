"""How the model in this package was trained: BAGEL's own modules, on the world beside this folder.

`python -m g2tr_core.embedded.training --help` lists the stages. Each can be stopped and goes on where it was.
"""
