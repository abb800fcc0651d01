"""The stages of the pipeline: each has `plan(recipe)`, `run(recipe)` and a command line."""
