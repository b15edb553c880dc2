"""The Decision Transformer in torch: network, settings, caches and dropout; imports no Ray."""
