"""ONNX Runtime: MatMulNBits and GroupQueryAttention on the CPU, in the layout that onnxruntime-genai opens as well.

options.py       what a target may set
weights.py       model.onnx.data: offsets first, then one block of rows at a time
graph.py         model.onnx
proto.py         its bytes
genai_config.py  genai_config.json
export.py        the three together
session.py       running it; imports none of the above
"""
