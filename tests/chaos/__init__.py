"""
The chaos suite: a real stack under every trouble people really meet, judged by independent evidence.

    make chaos                              # ten minutes, ten thousand jobs
    make chaos CHAOS_LIST_INPUT=off         # the same, at a provider whose list shows no inputs

`run` sets it up, `clients` hand jobs in, `troubles` hurt the stack and `proxy` its connections. In the end `evidence`
is read from Postgres and from the provider's own record, and `verdict` says what was promised and not kept.
"""
