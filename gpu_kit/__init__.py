"""The kit for a host with a GPU that is at hand for minutes: `make gpu-kit` builds it, docs/gpu.md describes it.

A *job* is one process with a time limit, so that what hangs costs its own job only. Each writes what it has found after every
measurement, whole files, so that whatever ends a job or the kit leaves something to read.
"""
