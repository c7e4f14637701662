"""Jobs as plain records: a picture, a prompt and settings in, a result out; the same for one picture and for many.

- `records`: what a job and its result are. Needs no torch, so a list of jobs can be made and split anywhere.
- `work`: `prepare` opens and checks what a job needs without a model, `run` does it with one.
"""
