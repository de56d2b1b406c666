"""Unlearning methods: one file, one pure loss `(lm, params, refs, batch, key)`, named as the file.

`batch` holds packed rows of `retain` and `forget`; `refs["base"]` is the model before unlearning.
"""
