"""A supervised actor runtime that attests VMs, remedies distrust and gates placement.

Same noun, same file name, in every layer: pick the noun, then the layer.

    domain       what is true and what follows from it: values and pure decisions
    db           where it is kept: one SQL statement a function
    drivers      how the world is touched: libvirt, subprocesses, software TPMs
    supervision  how processes live, die and come back: actors, addresses, specs
    actors       our processes: each waits, asks domain, has db save
    http         how it is asked for and watched: REST and event streams
    cli          how people ask: mcpctl and its shell
    scenarios    how it is broken on purpose

Read `tree.py` first, then the five files of one noun from domain to cli.
"""
