"""The commands of `python -m ondine_core.store`: a module for each group, each parser beside its functions."""
