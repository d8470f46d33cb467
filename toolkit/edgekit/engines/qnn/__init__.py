"""Qualcomm NPUs (HTP): the decoder compiled ahead of time by onnxruntime-qnn, in the layout that onnxruntime-genai opens.

socs.py          chips, and what the NPU of each takes
options.py       what a target may set
graph.py         some layers as a graph that the NPU computes whole
stages.py        embeddings and lm_head, which the CPU computes
layout.py        how a model is cut, and whether that fits the chip
footprint.py     what it takes when it runs
compiler.py      Qualcomm's compiler, in a process of its own
genai_config.py  genai_config.json
genie.py         the graphs as Genie opens them; genie_config.py genie_config.json
export.py        all of it together
session.py       running it; profile.py what is asked when it is measured; these two import none of the above
"""

import os

# As for the onnx engine, whose library this one runs on: set before onnxruntime is first imported, it stops all reports to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
