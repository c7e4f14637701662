"""Do answers and edits survive when visual tokens go, against which alternatives, and is it the latent that does it?

The experiment behind `g2tr bench quality`. Every question and every edit is put to a model once for each condition (a
keep ratio, a method, merging or not); what comes out is compared with the truth and with what all tokens give.

- `conditions`: what is compared, and how a picture is read under each of them.
- `cases`, `world_cases`, `own_cases`: pictures with questions or edits, from the embedded world or the user's files.
- `answers`, `edits`: the two runs; `results` keeps their results on disk, so that a run that was stopped goes on.
- `bootstrap`, `summary`: means with intervals; `markdown`, `plot`: the page and the figure. `command` runs all of it.
"""
