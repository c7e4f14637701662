"""What every network here is built from: attention, the KV cache, rotary positions, the decoder and its layers."""
