"""How tiny-phi, the embedded model, is made: text, tokenizer, training, examination. Not part of the package."""
