"""ONNX Runtime: MatMulNBits and GroupQueryAttention on the CPU, in the layout that onnxruntime-genai opens as well.

options.py       what a target may set
graph.py         model.onnx and the plan of model.onnx.data, both written by engines/onnx_format
genai_config.py  genai_config.json
export.py        the three together
session.py       running it; imports none of the above
"""

import os

# ONNX Runtime's builds from 1.29 on report to Microsoft. Only this, set before it is first imported, stops all of it:
# disable_telemetry_events comes after a report about the process (microsoft/onnxruntime#27379, #25573).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
