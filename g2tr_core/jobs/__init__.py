"""Jobs as plain records: a picture, a prompt and settings in, a result out; the same for one picture and for many.

- `records`: what a job and its result are. Needs no torch, so a list of jobs can be made and split anywhere.
- `work`: `prepare` opens and checks what a job needs without a model, `run` does it with one.
- `lists`: many jobs, from a folder or a file; which share a reading; shards.
- `store`: results on a disk, whole or not at all; `table`: their list as Parquet.
- `worker`: jobs on one model, opened and found, done and kept.
- `bulk`: a run over a list that may end at any moment and be started again; `fleet`: the same on a cluster of Ray.
- `function`: record -> record, for engines that run Python over rows.
"""
