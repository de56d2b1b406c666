"""The command line: a command is a function, and its arguments are its flags."""
