"""What a run needs before it starts: memory of every actor, where it goes, how long a step takes.

Pure arithmetic on a configuration: shapes, devices, memory and time import nothing but the standard library, so that a
machine with torch alone can check them (scripts/check_memory.py); plan.py puts them together with the configuration and
the cluster. Nothing here loads a model or looks at a network, except where a cluster is to be joined (here.py).
"""
