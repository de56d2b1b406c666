"""The commands: each file has one function of its name; a folder is a group of commands."""
