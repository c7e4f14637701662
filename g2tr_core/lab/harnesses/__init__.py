"""Others' benchmarks: a plugin for lmms-eval, and edit suites whose outputs their official scorers read."""
