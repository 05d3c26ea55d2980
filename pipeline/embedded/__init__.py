"""
The whole stack on one machine: Postgres and Valkey from wheels, the sandbox, and the Procfile's own lines.

    dev.py, demo.py   the commands                          environment.py  what the programs are told
    foreground.py     all of it, as children of a command   memory.py       what a data directory remembers
    stack.py          all of it, for a test                 procfile.py     the Procfile's lines
    supervisor.py     programs kept running                 ports.py        free ports, held
    processes.py      one program and its descendants       scratch.py      temporary directories, locked
    leash.py          what ties a child's life to ours      files.py, logs.py, api.py
    postgres.py (as whom: accounts.py), valkey.py           the servers

It knows the product from outside only: its commands, its environment variables, its HTTP.
"""
