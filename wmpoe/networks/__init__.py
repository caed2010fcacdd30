"""Networks: the diffusion transformer, its attention patterns and embeddings, and LoRA."""
