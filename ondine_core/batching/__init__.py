"""Several prompts in one call: formats, packing, batch size, calibration."""
