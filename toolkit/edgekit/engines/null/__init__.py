"""An engine without a model: logits are a hash of the tokens. For tests of everything around an engine, also of your own code."""
