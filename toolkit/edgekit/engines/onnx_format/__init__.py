"""ONNX files, for every engine that reads them.

proto.py    what a graph is made of, and its bytes
weights.py  the data file beside it: offsets first, then one block of rows at a time
genai_tokenizer.py, genai_encode.py  whether onnxruntime-genai's own tokenizer agrees with tokenizer.json
"""
