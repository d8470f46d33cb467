"""Updates of an artifact on a device: only the bytes that are new travel.

chunks.py   where files are cut so that equal content is cut alike wherever it lies
patch.py    the file that travels, and its checks (docs/updates.md)
diff.py     makes it of two artifacts
apply.py    makes the new artifact of the old one and it, and switches in one step
"""
