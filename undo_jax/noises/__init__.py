"""Noises: one file each, one pure function `(lm, key, params, alpha)`, named as the file.

`alpha` may be traced; 0 returns the parameters unchanged.
"""
