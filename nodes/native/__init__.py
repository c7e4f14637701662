"""The models as ComfyUI knows them: MODEL, CONDITIONING and GUIDER, thin adapters around `g2tr_core.generation`.

Nothing is here yet: the nodes of today sample with the core's own sampler.
"""
