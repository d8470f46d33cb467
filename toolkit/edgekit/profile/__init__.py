"""Measures an artifact on this machine (``edge profile``). Device side: needs the runtime and the artifact's engine, nothing of the build.

run.py         what is measured, in which processes
worker.py      inside those processes
journal.py     every measurement, on the disk as it is made
compose.py     from the journal to the report
report.py      the report, versioned
subject.py     the artifact; machine.py, memory.py, files.py: where it runs
statistics.py  medians, spreads, significance
"""
