"""Worker processes for `coda bench engines`: each trains one step graph on one engine, step by step, as it is asked.

A worker writes one JSON line when it is ready and one for each chunk. It imports only what a program that trains with
that engine must import, so its peak memory is that program's.
"""
