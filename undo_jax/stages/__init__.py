"""The five stages. Each reads the artifacts of the stage before and makes its own.

A stage takes a `Run` and finished artifacts, and returns its artifacts, finished; what is finished
already is not made again.
"""
