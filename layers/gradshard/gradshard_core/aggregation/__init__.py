"""The weighted sum over byte ranges: kernel, arithmetic, sharding, topologies."""
