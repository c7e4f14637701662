"""Makes the workflow templates and their API twins: `python -m tools.templates`, or `--check` to compare alone.

`contents.py` says which nodes a template has and how they are linked, `texts/` what its note says. The rest has the
schemas' defaults, so that a changed schema changes the templates when this is run again.
"""
