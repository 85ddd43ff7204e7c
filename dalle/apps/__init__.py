"""Applications of the models: classification, search, VQGAN+CLIP, a server, reports. Only the CLI imports them."""
