"""The networks: encoders, decoders, the segmenter around them, and the bundle that stores one for inference."""
