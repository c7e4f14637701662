"""From what was read to a text or a picture: settings, decoding, schedules, guidance, solvers, once for all models."""
