"""A page where a visitor asks the models of a run, before and under attack.

`models` finds the parameters that are on disk at each step of an attack, `ask` puts questions to
models, `description` collects the page's contents as JSON, `page` makes the HTML file, and `server`
answers visitors' questions.
"""
