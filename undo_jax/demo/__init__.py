"""A page where a visitor asks the models of a run, before and under attack.

`models` finds which parameters can be shown at which step of an attack, `ask` puts questions to
them, `description` makes one JSON-able description of all, `page` a page of that, and `server`
answers what visitors ask.
"""
