"""What of vLLM's own code is replaced or used though it is private: one module a seam."""
