"""The benchmark: this project against its peers, on this machine, with vLLM's own load client."""
