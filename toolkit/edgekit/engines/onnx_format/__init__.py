"""ONNX files, for every engine that reads them.

proto.py    what a graph is made of, and its bytes
weights.py  the data file beside it: offsets first, then one block of rows at a time
"""
