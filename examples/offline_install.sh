#!/bin/sh
# An artifact packaged for Python, installed without a network, and asked:
#   sh examples/offline_install.sh ARTIFACT NEW_DIR "turn on the kitchen light" [options of edge package, such as --wheels DIR]
set -eu
artifact=$1 folder=$2 prompt=$3
shift 3
edge package "$artifact" --for python --out "$folder/package" "$@"
sh "$folder/package/install.sh" "$folder/installed"
"$folder/installed/venv/bin/python" "$folder/installed/app.py" "$prompt"
