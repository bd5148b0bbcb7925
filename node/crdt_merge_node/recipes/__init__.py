"""Recipes of other tools, read as strategies and parameters of this one."""
