"""MLX on Apple silicon: safetensors and config.json in mlx-lm's layout, which mlx-swift's loaders read as well.

options.py   what a target may set
weights.py   model*.safetensors: headers and offsets first, then one block of rows at a time; needs no MLX
config.py    config.json, and up to which length other loaders are right
export.py    the two together
model.py     mlx-lm's own layers with this artifact's weights, windows and rotary factors; imports none of the above
session.py   running it
"""
