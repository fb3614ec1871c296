"""`plait data build`: documents in, filtered, deduplicated token shards out, every loss on record (paper section 5.2).

Runs on datatrove (the `data` extra): each stage is a pipeline step of many independent tasks, so the executors of
datatrove for one machine, Slurm and Ray run it unchanged. Nothing heavy is imported before a build starts.
"""

from plait.data.pipeline.recipe import BuildRecipe, Source, load_build_recipe

__all__ = ["BuildRecipe", "Source", "load_build_recipe"]
