"""The operator's side: `mcpctl` and its shell. It speaks HTTP only.

`main.py` is the command table and the exit codes; each noun's file holds its
commands; `shell.py` runs the same table interactively.
"""
