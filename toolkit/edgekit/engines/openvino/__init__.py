"""OpenVINO on Intel's (and other) CPUs, GPUs and NPUs, in the layout that openvino_genai opens as well.

options.py     what a target may set
weights.py     openvino_model.bin: offsets first, then one block of rows at a time
ir.py          openvino_model.xml of a graph whose weights are placeholders
graph.py       the decoder
tokenizer.py   openvino_genai's tokenizer and detokenizer
export.py      all of it together
plugins.py     OpenVINO itself, and its devices
settings.py    what is fastest on this CPU
warmup.py      the first inference, in the background
operators.py   products and attention of our own for the CPU plugin; operators.c their threads
substitute.py  where they take the place of the graph's
slots.py       which token lies where in the plugin's cache
session.py     running it on a CPU or GPU; npu.py on an NPU; these eight import none of the above
"""

import sys

# On import, openvino tells Google Analytics of it unless the user has opted out (openvino.tools.ovc). Here, before anything of this package
# imports it, its telemetry is made a package that is not installed: it then takes its own stub.
if "openvino" not in sys.modules:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
