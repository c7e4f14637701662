"""How the embedded model was trained: BAGEL's own modules, on the scenes of `lab.world`.

`python -m g2tr_core.lab.training --help` lists the stages. Each can be stopped and goes on where it was.
"""
